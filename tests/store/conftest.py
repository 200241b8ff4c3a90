"""A tiny model and documents of its token ids; and a process of its own for what is to be killed."""

import multiprocessing
import sys

import pytest
import torch

import patchclamp as pc
import tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model():
    return pc.wrap(tiny.build("llama"), name="tiny")


@pytest.fixture(scope="session")
def documents():
    """Sixty documents of 3 to 40 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 41, (60,), generator=generator).tolist()
    return [torch.randint(3, 99, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture
def forked():
    """Start a function in a process of its own, which has all that this one has; killed when the test ends."""
    if sys.platform == "win32":
        pytest.skip("needs fork")
    started = []

    def start(function, *args):
        process = multiprocessing.get_context("fork").Process(target=function, args=args)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()
