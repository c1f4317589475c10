"""`recal bench`, as people call it."""

import json

import pytest

from recal.onnx_file import bench as bench_module


@pytest.mark.slow
def test_bench_times_files_in_turn(recal, split_checkpoint, monkeypatch):
    recal("export", split_checkpoint, "-o", "a.onnx")
    recal("export", split_checkpoint, "-o", "b.onnx", "--uint8")
    status, out, err = recal(
        "bench", "a.onnx", "b.onnx", "--runs", "4", "--batch-size", "1,3", "--threads", "1,2",
        "--json",
    )  # fmt: skip
    assert status == 0, err
    rows = json.loads(out)["timings"]
    assert len(rows) == 8
    assert [(r["threads"], r["batch"], r["model"]) for r in rows[:3]] == [
        (1, 1, "a.onnx"), (1, 1, "b.onnx"), (1, 3, "a.onnx"),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["p50"] <= row["p90"] <= row["p99"]
        assert row["throughput"] > 0
        assert row["ratio"] == 1 or row["model"] == "b.onnx"
    status, out, _ = recal("bench", "a.onnx", "--runs", "2", "--batch-size", "1")
    assert "ratio" in out
    recal("export", split_checkpoint, "-o", "c.onnx", "--fixed-batch", "4")
    for arguments, message in (
        (["c.onnx", "--batch-size", "1"], "is fixed to batches of 4"),
        (["a.onnx", "--batch-size", "x"], "expected integers from 1"),
        (["a.onnx", "--batch-size", "0"], "expected integers from 1"),
    ):
        status, _, err = recal("bench", *arguments)
        assert status == 2
        assert message in err


def test_order_varies_and_ratios_are_of_the_same_round(monkeypatch):
    """With a clock that each run moves by its own cost, percentiles and ratios are exact."""
    now, order = [0.0], []

    class Session:
        batch, record = None, None

        def __init__(self, path, threads):
            self.path = path

        def noise(self, images, side):
            return None

        def outputs(self, inputs):
            order.append(self.path)
            now[0] += {"a": 0.010, "b": 0.025}[self.path]

    monkeypatch.setattr(bench_module, "OnnxNetwork", Session)
    monkeypatch.setattr(bench_module.time, "perf_counter", lambda: now[0])
    a, b = bench_module.bench(["a", "b"], batches=[5], threads=[1], runs=40)
    rounds = ["".join(order[i : i + 2]) for i in range(6, len(order), 2)]
    assert len(rounds) == 40
    assert set(rounds) == {"ab", "ba"}, "each file once a round, neither always first"
    assert 10 <= rounds.count("ab") <= 30
    assert (round(a.p50, 6), round(b.p50, 6), round(b.ratio, 6)) == (10.0, 25.0, 2.5)
    assert round(b.throughput, 6) == 200.0
