"""The embedded model in transformers, loaded once, and an origin of a scale file."""

import pytest
import torch

from vllm_launch import model
from vllm_launch.scales import collect

MODEL = model.find(str(model.EMBEDDED))


@pytest.fixture(scope="session")
def loaded():
    """The embedded model on one thread: threads on busy cores wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield collect.load(MODEL, "cpu", is_mxfp4=False)
    torch.set_num_threads(threads)
