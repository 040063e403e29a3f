"""FlexAttention compiles its eager calls too: each test starts without compiled code."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
