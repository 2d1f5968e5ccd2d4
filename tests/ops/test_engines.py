"""Which engine serves, what is said when it is not there, and how the kernels are built."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixers.ops import engines
from mixers.ops.dplr import dplr
from mixers.ops.gated_delta import gated_delta
from mixers.ops.linear_attention import linear_attention
from mixers.ops.native import build
from mixers.ops.scan import scan
from mixers.ops.selective_scan import selective_scan

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("SEQMIX_ENGINE", raising=False)
    engines.use("auto")
    engines.ran.clear()
    yield
    monkeypatch.undo()
    engines.use("auto")


@pytest.fixture
def unbuilt(monkeypatch):
    """No library has been loaded by this process."""

    def again(**environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, str(value))
        engines.choice.cache_clear()

    monkeypatch.setattr(build, "library", build.library.__wrapped__)
    return again


def heads(T=20, **options):
    torch.manual_seed(0)
    return [torch.randn(2, 2, T, 4, **options) for _ in range(3)]


def test_the_native_engine_serves_cpus_unless_told_otherwise(monkeypatch):
    assert engines.choice("cpu") == ("native", "the fastest for cpu")
    linear_attention(*heads())
    assert engines.ran == {"linear_attention": {"native"}}
    assert engines.use("torch") == ("torch", "asked for")
    linear_attention(*heads())
    assert engines.ran == {"linear_attention": {"native", "torch"}}
    engines.use("auto")
    monkeypatch.setenv("SEQMIX_ENGINE", "torch")
    engines.choice.cache_clear()
    assert engines.choice("cpu").name == "torch"


def test_an_engine_that_is_not_there_is_an_error(monkeypatch):
    for name, device, message in (
        ("nativ", "cpu", "there is no engine nativ: choose auto, torch, native, fla"),
        ("fla", "cpu", "the engine fla is for cuda and the tensors are on cpu"),
        ("native", "cuda", "the engine native is for cpu and the tensors are on cuda"),
        ("fla", "cuda", "the engine fla was asked for and is not there: "),
    ):
        with pytest.raises(ValueError, match=message):
            engines.use(name, device)
        assert engines.choice("cpu").name == "native"  # as before
    monkeypatch.setenv("SEQMIX_ENGINE", "triton")
    engines.choice.cache_clear()
    with pytest.raises(ValueError, match="SEQMIX_ENGINE=triton is no engine"):
        linear_attention(*heads())


def test_without_a_compiler_torch_serves_and_says_so_once(unbuilt, tmp_path, caplog):
    unbuilt(SEQMIX_CACHE=tmp_path, CC="no-such-compiler")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            linear_attention(*heads())
    assert engines.ran == {"linear_attention": {"torch"}}
    assert [r.message for r in caplog.records] == [
        "the torch engine serves, slower than native: there is no C compiler: install gcc, or name one in CC"
    ]
    assert "there is no C compiler" in engines.choice("cpu").why
    with pytest.raises(ValueError, match="native was asked for and is not there: there is no C compiler"):
        engines.use("native")


def test_a_build_that_fails_is_explained(unbuilt, tmp_path, monkeypatch):
    (tmp_path / "broken.c").write_text("int f(void) { return nothing; }\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    unbuilt(SEQMIX_CACHE=tmp_path / "cache")
    choice = engines.choice("cpu")
    assert choice.name == "torch" and "cannot compile the kernels" in choice.why and "nothing" in choice.why
    assert not list((tmp_path / "cache").iterdir())


def test_a_cpu_that_the_compiler_does_not_know_is_explained(unbuilt, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text(
        "#!/bin/sh\necho \"cc: error: unsupported argument 'native' to option '-march='\" >&2; exit 1\n"
    )
    compiler.chmod(0o755)
    unbuilt(SEQMIX_CACHE=tmp_path / "cache", CC=compiler)
    linear_attention(*heads())
    assert engines.ran == {"linear_attention": {"torch"}}
    assert "cannot compile the kernels: cc: error: unsupported argument 'native'" in engines.choice("cpu").why


def test_what_was_built_for_one_cpu_is_not_run_on_another(unbuilt, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(build, "compile_into", lambda path, files: compiled.append(path.name))
    for cpu in ("x86_64 of today", "x86_64 of old"):
        monkeypatch.setattr(build, "cpu", lambda cpu=cpu: cpu)
        unbuilt(SEQMIX_CACHE=tmp_path)
        engines.choice("cpu")
    assert len(set(compiled)) == 2


def test_a_cache_that_cannot_be_written_is_explained(unbuilt, tmp_path):
    (tmp_path / "file").write_text("")
    unbuilt(SEQMIX_CACHE=tmp_path / "file" / "below")
    choice = engines.choice("cpu")
    assert choice.name == "torch" and "set SEQMIX_CACHE" in choice.why


def test_a_broken_library_is_not_fatal(unbuilt, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "compile_into", lambda path, files: path.write_bytes(b"not a library"))
    unbuilt(SEQMIX_CACHE=tmp_path)
    choice = engines.choice("cpu")
    assert choice.name == "torch" and "clear the cache, or set SEQMIX_CACHE" in choice.why


def test_processes_may_race_to_build(tmp_path):
    code = "from mixers.ops.native.build import library; library(); print('built')"
    compiler, cache = tmp_path / "cc", tmp_path / "cache"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("cc")} "$@" -O0\n')  # who wins does not depend on how well
    compiler.chmod(0o755)
    environment = os.environ | {"SEQMIX_CACHE": str(cache), "CC": str(compiler)}
    racing = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in racing] == [b"built\n"] * 3
    (path,) = cache.iterdir()
    before = path.stat().st_mtime_ns
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert path.stat().st_mtime_ns == before  # found, not built again


def test_importing_mixers_builds_nothing(tmp_path):
    code = "import mixers.ops.linear_attention, mixers.ops.scan, mixers.registry"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"SEQMIX_CACHE": str(tmp_path / "none")}
    )
    assert not (tmp_path / "none").exists()


def test_what_the_kernels_do_not_take_goes_to_torch():
    q, k, v = heads()
    linear_attention(*heads(dtype=torch.float64))
    linear_attention(q, k, v, gv=-v.abs())
    linear_attention(q[..., :0], k[..., :0], v)
    linear_attention(*(x[:, :, :0] for x in (q, k, v)))
    linear_attention(*(x.to("meta") for x in (q, k, v)))
    assert engines.ran == {"linear_attention": {"torch"}}
    with pytest.raises(RuntimeError, match="(must match|Expected size)"):
        linear_attention(q[..., :3], k, v)
    with pytest.raises(RuntimeError, match="(must match|Expected size)"):
        scan(torch.rand(2, 5, 3), torch.rand(2, 5, 4))


def test_an_op_without_a_kernel_is_served_by_torch_and_recorded_so():
    q, k, v = heads()
    dplr(q, k, v, k / 9, q / 9)
    assert engines.choice("cpu").name == "native" and engines.ran == {"dplr": {"torch"}}


def calls():
    q, k, v = heads(70)
    g, x, dt, bc = -torch.rand(2, 2, 70, 1), torch.randn(2, 70, 37), torch.rand(2, 70, 37), torch.randn(2, 70, 5)
    return {
        "linear_attention": (linear_attention, (q, k, v, g)),
        "gated_delta": (gated_delta, (q, k / 4, k / 4, v, g)),
        "scan": (scan, (dt, x)),
        "selective_scan": (selective_scan, (x, dt, -torch.rand(37, 5), bc, bc.flip(1), torch.randn(37))),
    }


def results(op, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    o, S = op(*leaves)
    return [o, S, *torch.autograd.grad(o.sum() + S.square().sum(), leaves)]


@pytest.mark.parametrize("name", list(calls()))
def test_threads_change_nothing(name):
    op, inputs = calls()[name]
    single = results(op, inputs)
    torch.set_num_threads(2)
    try:
        both = results(op, inputs)
    finally:
        torch.set_num_threads(1)
    for a, b in zip(single, both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(calls()))
def test_what_the_caller_has_as_default_dtype_changes_nothing(name):
    op, inputs = calls()[name]
    expected = results(op, inputs)
    torch.set_default_dtype(torch.float64)
    try:
        got = results(op, inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert engines.ran == {name: {"native"}}
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", list(calls()))
def test_inputs_and_states_are_values(name):
    """Nothing given is written to, and what cannot be a number stays visible."""
    op, inputs = calls()[name]
    copies = [x.clone() for x in inputs]
    _, S = op(*inputs)
    before = S.clone()
    op(*inputs, state=S)
    assert torch.equal(S, before) and all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True))
    copies[1].view(-1)[7] = torch.nan
    o, _ = op(*copies)
    assert o.isnan().any() and engines.ran == {name: {"native"}}


@pytest.mark.parametrize("name", list(calls()))
def test_a_second_derivative_is_refused(name):
    op, inputs = calls()[name]
    x = inputs[0].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated: drop create_graph=True"):
        torch.autograd.grad(op(x, *inputs[1:])[0].sum(), x, create_graph=True)


@pytest.mark.parametrize("name", ["linear_attention", "gated_delta"])
@pytest.mark.parametrize("width", [0, 1, 4])
def test_a_single_token(name, width):
    op, inputs = calls()[name]
    streams = [x[:, :, :1] for x in inputs[:-1]]
    g = -torch.rand(2, 2, 1, width) if width else None
    S = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        got = op(*streams, g, S)
    engines.use("torch")
    for a, b in zip(got, op(*streams, g, S), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["scan", "selective_scan"])
@pytest.mark.parametrize("N", [3, 8, 21])
def test_a_single_token_of_a_diagonal_recurrence(name, N):
    torch.manual_seed(0)
    x, dt, bc, A = torch.randn(2, 1, 37), torch.rand(2, 1, 37), torch.randn(2, 2, N), -torch.rand(37, N)
    op, inputs, shape = (
        (scan, (dt, x), (2, 37))
        if name == "scan"
        else (selective_scan, (x, dt, A, bc[:, :1], bc[:, 1:], torch.randn(37)), (2, 37, N))
    )
    for state in (None, torch.randn(shape), torch._neg_view(torch.randn(shape))):
        with torch.no_grad():
            got = op(*inputs, state=state)
        twice = op(*(torch.cat([z, z], 1) if z.ndim == 3 else z for z in inputs), state=state)
        torch.testing.assert_close(got[0], twice[0][:, :1])
        engines.use("torch")
        for a, b in zip(got, op(*inputs, state=state), strict=True):
            torch.testing.assert_close(a, b)
        engines.use("auto")
    assert engines.ran == {name: {"native", "torch"}}


CLEAN = """
import sys
import pytest
from mixers.ops.native import build
build.FLAGS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", *build.FLAGS[1:]]
build.library()
files = [f"tests/ops/test_{name}.py" for name in ("recurrences", "scan_conv_attention", "engines")]
which = ["-m", "not slow", "-k", "native or threads or single or values"]
sys.exit(pytest.main(["-q", "-s", "-x", "-p", "no:cacheprovider", *which, *files]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_kernel_leaves_its_memory(tmp_path):
    """Every test of the native engine again, with the address and undefined behaviour sanitizers compiled in."""
    compiler = shutil.which("cc")
    libraries = []
    for name in ("libasan.so", "libstdc++.so.6"):  # the sanitizer looks for C++ exceptions when it starts
        command = [compiler, f"-print-file-name={name}"]
        libraries.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    if not Path(libraries[0]).is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "SEQMIX_CACHE": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", CLEAN], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "passed" in done.stdout
