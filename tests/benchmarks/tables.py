"""What replay.py measured, as docs/benchmarks.md says it: tables, sentences, and where they are from."""

from pathlib import Path

BEGIN, END = "<!-- replay:begin -->", "<!-- replay:end -->"


def rewrite(readme: Path, report: dict) -> None:
    """Replace what a page says between its markers."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"--readme: {str(readme)!r} must hold one {BEGIN} and after it one {END}; add these two lines")
    block = "\n".join([BEGIN, *block_of(report), END])
    readme.write_text(text.split(BEGIN)[0] + block + text.split(END)[1], encoding="utf-8")
    print(f"wrote {readme}, between its replay markers")


def block_of(report: dict) -> list[str]:
    """The page's lines."""
    found, where = report["results"], report["machine"]
    lines = share_table(found)
    lines += speedup_table([entry for entry in found if entry.get("part") in ("decode", "peer", "dynamic")])
    lines += sentences(found)
    lines += profiles([entry for entry in found if entry.get("part") == "profile"])
    busy = []
    if where["steal"] is not None:
        busy.append(f"{100 * where['steal']:.1f} % of processor time stolen")
    if where["others"] is not None:
        busy.append(f"other processes used {where['others']:.1f} cores")
    about = (
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, torch {where['torch']}, float32; "
        "Pythia’s shapes with random weights, random tokens; medians and 95 % intervals over rounds."
    )
    again = f"python tests/benchmarks/replay.py --from {report['file']} --readme docs/benchmarks.md"
    source = f"`{report['command']}`, then `{again}`"
    also = f" Meanwhile: {', '.join(busy)}." if busy else ""
    return [*lines, "", f"{about}{also} From {source}."]


def share_table(found: list[dict]) -> list[str]:
    """Tokens per second and the share of the peak, at each model's longest length."""
    entries = [entry for entry in found if entry.get("part") == "peak"]
    if not entries:
        return []
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    longest = {model: max(e["tokens"] for e in entries if e["model"] == model) for model in models}
    peaks = {e["model"]: e["peak_gflops"] for e in found if e.get("part") == "peak of products"}
    head = [f"{model}, {longest[model]:,} tokens | of {peaks[model]:,.0f} GFLOP/s" for model in models]
    lines = [f"| Replay under | {' | '.join(head)} |", "|---|" + "---:|---:|" * len(models)]
    for policy in dict.fromkeys(entry["policy"] for entry in entries):
        cells = []
        for model in models:
            [e] = [e for e in entries if (e["model"], e["policy"], e["tokens"]) == (model, policy, longest[model])]
            share = f"{100 * e['ratio']:.0f} % [{100 * e['low']:.0f}, {100 * e['high']:.0f}]"
            cells += [f"{e['tokens_per_s']:,.0f} tokens/s", share]
        lines.append(f"| `{policy}` | {' | '.join(cells)} |")
    return lines


def speedup_table(entries: list[dict]) -> list[str]:
    """How many times faster than token by token."""
    if not entries:
        return []
    names = {
        "decode": "`decode`, {policy}",
        "peer": "attention-sinks 0.4.0, {policy}",
        "dynamic": "DynamicCache at {context:,} tokens, {policy}",
    }
    rows: dict[str, dict[str, str]] = {}
    for e in entries:
        row = names[e["part"]].format(policy=f"`{e['policy']}`", context=e.get("context", 0))
        rows.setdefault(row, {})[e["model"]] = f"{e['ratio']:.1f} × [{e['low']:.1f}, {e['high']:.1f}]"
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    lines = ["", f"| Replay, times faster than | {' | '.join(models)} |", "|---|" + "---:|" * len(models)]
    return lines + [f"| {row} | {' | '.join(cells.get(m, '–') for m in models)} |" for row, cells in rows.items()]


def sentences(found: list[dict]) -> list[str]:
    """The grid and the memory."""
    lines = []
    for e in found:
        if e.get("part") == "grid":
            lines.append(
                f"The grid of `sweeps/quick.py` ({e['policies']} policies, {e['documents']} documents) on "
                f"{e['tokens']:,} tokens at the shape of {e['model']}: {e['replayed_s']:.0f} s, {e['ratio']:.1f} × "
                f"[{e['low']:.1f}, {e['high']:.1f}] faster than token by token, which is estimated at "
                f"{e['token_by_token_s']:.0f} s from steps at a few contexts."
            )
        if e.get("part") == "grid limit":
            lines.append(
                f"At the peak, with nothing but its counted operations, it would be {e['ratio']:.1f} × "
                f"[{e['low']:.1f}, {e['high']:.1f}]: decoding reads weights as fast as memory delivers them, so no "
                "replay can gain more on this machine."
            )
        if e.get("part") == "memory" and e["model"] != "small":
            lines.append(
                f"Peak memory above the weights, {e['model']}, `{e['policy']}`, {e['tokens']:,} tokens: "
                f"{e['peak_bytes'] / 1e6:.0f} MB."
            )
        if e.get("part") == "driver":
            lines.append(
                f"A sweep’s own process takes {e['ms_per_cell']:.0f} ms per cell, and finds {e['cells']:,} finished "
                f"cells in {e['resume_s']:.1f} s."
            )
        if e.get("part") == "growth":
            growth = f"{e['ratio']:.3f} × [{e['low']:.3f}, {e['high']:.3f}]"
            lines.append(f"A process with a small model peaks at 200,000 tokens at {growth} what it does at 20,000.")
    return ["", " ".join(lines)] if lines else []


def profiles(entries: list[dict]) -> list[str]:
    """Where the time goes that is not spent at the peak."""
    told = [f"Replay’s time under `{entry['policy']}` at the shape of 70m: {entry['told']}." for entry in entries]
    return ["", " ".join(told)] if told else []
