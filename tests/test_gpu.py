"""The GPU's benchmark runs on a CPU at tiny sizes, survives what fails in it, and says what it left out."""

import json
import os
import time
from types import SimpleNamespace

import pytest

from benchmarks import gpu, gpu_table
from benchmarks.pool import Pool, Task


@pytest.mark.slow
def test_every_part_runs(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    tiny = ["--tiny", "--mixers", "causal_mean", "--workers", "1", "--json", str(path), "--seconds", "100"]
    assert gpu.main([*tiny, "--parts", "2,3,4", "--lengths", "64"]) == 0
    data = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert not [name for part in data.values() for name, result in part.items() if "error" in result]
    for name in gpu.CASES:
        assert data["exactness"][f"{name} fp32 torch"]["worst"] < 1e-4
        assert data["speed"][f"{name} torch T=64"]["ms"] > 0
        assert f"{name}, fp32: torch " in printed and f"\n{name}: torch " in printed
    assert data["speed"]["mixer causal_mean T=64"]["ms"] > 0
    assert data["training"]["softmax"]["outcome"] == "finished"
    assert "WRONG" not in printed and data["about"]["machine"]["versions"]["torch"]


@pytest.mark.slow
def test_conformance_is_counted(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    tiny = ["--tiny", "--mixers", "causal_mean", "--workers", "1", "--json", str(path)]
    assert gpu.main([*tiny, "--parts", "1", "--seconds", "60"]) == 0
    assert "conformance fp32 torch: 13 ok" in capsys.readouterr().out


def explode(how: str) -> dict:
    if how == "die":
        os._exit(3)
    if how == "hang":
        time.sleep(60)
    if how == "raise":
        raise ValueError("it is broken\nin two lines")
    return {"pid": os.getpid(), "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}


def test_what_fails_takes_nothing_along(monkeypatch):
    results = {}
    tasks = [Task("all", how, explode, {"how": how}, 0.5) for how in ("die", "hang", "raise", "work")]
    with Pool(1) as pool:
        pool.run(tasks, time.monotonic() + 60, lambda task, result: results.update({task.name: result}))
    assert results["die"]["error"] == "its process died with 3"
    assert results["hang"]["error"] == "TimeoutError: took too long"
    assert results["raise"]["error"] == "ValueError: it is broken" and "explode" in "".join(results["raise"]["trace"])
    assert results["work"]["pid"] != os.getpid()


def test_the_deadline_is_kept():
    results = {}
    tasks = [Task("all", name, explode, {"how": "hang"}, 60) for name in ("a", "b")]
    start = time.monotonic()
    with Pool(1) as pool:
        pool.run(tasks, start + 4, lambda task, result: results.update({task.name: result}))
    assert time.monotonic() - start < 12
    assert {result["error"] for result in results.values()} == {"not reached: out of time"}


def test_processes_live_on():
    results = {}
    with Pool(1) as pool:
        for name in ("a", "b"):
            task = Task("all", name, explode, {"how": "work"}, 60)
            pool.run([task], time.monotonic() + 60, lambda task, result: results.update({task.name: result["pid"]}))
    assert results["a"] == results["b"] != os.getpid()


@pytest.mark.parametrize(("devices", "seen"), [(["3"], "3"), (None, "0,1")])
def test_a_process_sees_its_device_or_all(devices, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    results = []
    with Pool(1, devices) as pool:
        task = Task("all", "a", explode, {"how": "work"}, 60)
        pool.run([task], time.monotonic() + 60, lambda task, result: results.append(result["devices"]))
    assert results == [seen]


def test_heads_reach_a_mixer_within_another():
    from benchmarks.gpu_work import headed
    from mixers import registry

    assert headed(registry.knobs("gla"), 5) == {"n_heads": 5} and headed(registry.knobs("identity"), 5) == {}
    inner = headed(registry.knobs("learned_state"), 5)["mixer"]
    assert inner["n_heads"] == 5 and inner["_target_"].endswith("GatedDeltaNet")


def test_wrong_numbers_are_called_wrong():
    lines = gpu_table.exactness_lines({"dplr fp32 fla": {"worst": 0.5, "served": {"dplr": ["fla"]}}})
    assert lines == ["dplr, fp32: fla 5.0e-01 WRONG"]
    lines = gpu_table.exactness_lines({"dplr fp32 fla": {"worst": float("nan"), "served": {"dplr": ["torch"]}}})
    assert lines == ["dplr, fp32: fla (torch) nan WRONG"]


def test_wrong_widths_are_named():
    right, wrong = {"worst": 1e-3}, {"worst": 0.5}
    rows = {"dplr fp32 fla 64x16 #0": right, "dplr fp32 fla 64x16 #1": wrong, "scan bf16 fla 16x16 #0": {"error": "no"}}
    lines = gpu_table.width_lines(rows | {"scan fp32 fla 16x16 #0": {"worst": float("nan")}})
    assert lines == [
        "widths: 4 rows, 3 wrong",
        "  dplr fp32 fla 64x16 #1: off by 5.0e-01",
        "  scan bf16 fla 16x16 #0: no",
        "  scan fp32 fla 16x16 #0: off by nan",
    ]


def test_only_mixers_with_kernels_are_compiled(tmp_path):
    scan, nothing, failed = {"served": {"scan": ["torch"]}}, {"served": {}}, {"error": "not reached: out of time"}
    rows = {"s5-causal fp32 torch check_law": scan, "s5-bidirectional fp32 torch check_law": nothing}
    rows |= {"gmlp-causal fp32 torch check_law": nothing, "fwp-causal fp32 torch check_law": failed}
    assert gpu.serving(rows) == ({"s5-causal"}, {"gmlp"})  # of fwp nothing is known
    bench = gpu.Bench(gpu.options(["--json", str(tmp_path / "gpu.json")]))
    tasks = [bench.mixer_task(name, {"B": 4, "T": 8192, "budget": 0.1}) for name in ("s5", "gmlp", "fwp")]
    assert [task.name for task in gpu.compiling(tasks, {"gmlp"})] == ["mixer s5 B=4", "mixer fwp B=4"]


def test_widths_are_those_of_kernels(tmp_path):
    bench = gpu.Bench(gpu.options(["--json", str(tmp_path / "gpu.json"), "--widths", "64x16", "--configurations", "2"]))
    rows = {task.name: task.arguments for task in bench.widths()}
    assert rows["dplr bf16 own 64x16 #2"]["sizes"][:3] == (2, 64, 16)
    assert rows["dplr bf16 fla 64x16 #2"]["configuration"] == 2
    of_own = {name for name in rows if " own " in name}
    assert not any("fp32" in name or "scalar" in name for name in of_own) and len(of_own) == 7 and len(rows) == 25


def test_bad_options_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "6"])
    assert "there is no part 6: choose from 1,2,3,4,5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--widths", "64"])
    assert "64 is not keys x values, such as 64x16,128x128" in capsys.readouterr().err


def test_what_is_slow_is_measured_once_and_last(tmp_path):
    from benchmarks.gpu_work import SLOW, seconds

    assert seconds(lambda: time.sleep(1.1 * SLOW), "cpu", 0.01)[2] == 1
    assert seconds(lambda: None, "cpu", 0.0)[2] == 3
    bench = gpu.Bench(gpu.options(["--json", str(tmp_path / "gpu.json"), "--tiny"]))
    bench.report.put("speed", "mixer lact T=64", {"ms": 1234.0})
    tasks = [Task("speed", f"mixer {name} T=128", explode, {}, 1) for name in ("lact", "softmax")]
    assert [task.name for task in sorted(tasks, key=bench.slowest)] == ["mixer softmax T=128", "mixer lact T=128"]


def test_a_file_that_is_there_is_continued(tmp_path, capsys):
    path, kept, worse = tmp_path / "gpu.json", {"worst": 1.0}, {"error": "not reached: out of time"}
    first = gpu.Report(path)
    first.put("exactness", "scan fp32 torch", kept)
    first.put("exactness", "scan bf16 torch", worse)
    first.write()
    second = gpu.Report(path)
    second.put("exactness", "scan fp32 torch", worse)
    second.put("exactness", "scan bf16 torch", {"worst": 2.0})
    second.put("exactness", "scan fp32 fla", {"error": "it failed"})
    assert second.data["exactness"]["scan fp32 torch"] == kept
    assert second.data["exactness"]["scan bf16 torch"] == {"worst": 2.0}
    second.put("exactness", "scan fp32 torch", {"error": "it failed"})
    second.write()
    assert gpu.main(["--json", str(path), "--show"]) == 0
    assert "it failed" in capsys.readouterr().out
    assert gpu.Report(path).data["exactness"]["scan fp32 torch"] == {"error": "it failed"}


def test_a_place_that_is_lost_is_filled():
    pool = Pool(3, ["3", "5"])
    on = {device: SimpleNamespace(device=device) for device in ("3", "5")}
    assert [pool.freest(busy) for busy in ([], [on["3"]], [on["5"]], [on["3"], on["5"]])] == ["3", "5", "3", "3"]
    pool.idle.append(on["3"])
    assert pool.freest([]) == "5"
