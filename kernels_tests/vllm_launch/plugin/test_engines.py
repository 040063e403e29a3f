"""What is kept of an engine's process."""

import json

from kernels_tests.vllm_launch.plugin.engines import LOG, collect, record_verdict

RECORD = {"decoder": "lowp", "kv_format": "e4m3"}


def test_files_of_an_engine_are_merged(tmp_path):
    (tmp_path / "bf16.log").write_text("started\n")
    (tmp_path / "bf16.json").write_text(json.dumps({"rounds": [1]}))
    (tmp_path / "bf16.record.json").write_text(json.dumps(RECORD))
    assert collect(tmp_path, "bf16") == {"bf16": {"rounds": [1], "record": RECORD}}
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


def test_the_log_of_an_engine_without_a_result_is_kept(tmp_path):
    for name in ("bf16", "fp8"):
        (tmp_path / f"{name}.log").write_text(f"{name} failed\n")
        assert collect(tmp_path, name) == {}
    assert (tmp_path / LOG).read_text() == "==== bf16\nbf16 failed\n==== fp8\nfp8 failed\n"


def test_the_record_shows_decoder_and_format():
    assert record_verdict("fp8", {"record": RECORD})[0]
    assert not record_verdict("bf16", {"record": RECORD})[0]
    assert not record_verdict("fp8", {"record": RECORD | {"decoder": "flashinfer"}})[0]
    assert not record_verdict("fp8", {"record": {}})[0]
