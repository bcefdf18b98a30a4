"""Tables of other autoencoders."""

from harness.tables.format import Result, machine_line, markdown_table, missing, number, small, table


@table("peers", "peers-cpu")
def peers(result: Result) -> str:
    """Time and memory at the largest size."""
    size = max(result["job"]["sizes"])
    header = ["", "latent channels", "compression", "parameters, M", "encode, ms per frame"]
    header += ["decode, ms per frame", "peak of encode, MB", "peak of decode, MB"]
    lines = []
    for row in result["rows"]:
        case = next((case for case in row.get("sizes", ()) if case["size"] == size), row)
        if "not_measured" in case:
            lines.append([row["title"], *missing(case, len(header) - 1)])
            continue
        both = [case["encode"], case["decode"]]
        shorter = case["frames"] != result["job"]["frames"]
        lines.append(
            [
                row["title"] + (f" ({case['frames']} frames)" if shorter else ""),
                str(row["latent_channels"]),
                "x".join(map(str, row["compression"])),
                number(row["parameters"] / 1e6),
                *(number(part["ms_per_frame"]) for part in both),
                *(f"{part['peak_mb']:,.0f}" for part in both),
            ]
        )
    job = result["job"]
    clip = f"{job['mode']}, {job['frames']} frames of {size}x{size}, random weights"
    return markdown_table(header, lines) + machine_line(result, clip)


@table("baselines", "baselines-cpu")
def baselines(result: Result) -> str:
    """Processor time and memory of the peers from checkouts at the largest size."""
    size = max(result["job"]["sizes"])
    header = ["", "weights", "latent channels", "parameters, M", "encode, CPU ms per frame"]
    header += ["decode, CPU ms per frame", "peak of encode, MB", "peak of decode, MB"]
    lines = []
    for row in result["rows"]:
        case = next((case for case in row.get("sizes", ()) if case["size"] == size), row)
        if "not_measured" in case:
            lines.append([row["title"], *missing(case, len(header) - 1)])
            continue
        both = [case["encode"], case["decode"]]
        name = row["title"] + (f", {row['version']}" if "version" in row else "")
        texts = [name, row.get("weights", "random"), str(row["latent_channels"])]
        numbers = [number(row["parameters"] / 1e6), *(number(part["cpu_ms_per_frame"]) for part in both)]
        lines.append([*texts, *numbers, *(f"{part['peak_mb']:,.0f}" for part in both)])
    job = result["job"]
    clip = f"{job['frames']} frames of {size}x{size}"
    count = max(row.get("runs", 0) for row in result["rows"])
    runs = "one run" if count == 1 else f"medians of {count} runs"
    load = f"load {result['machine']['load_average']:.0f}"
    return markdown_table(header, lines, texts=2) + machine_line(result, clip, runs, load)


@table("blockwise", "blockwise")
def blockwise(result: Result) -> str:
    """Each method against its own direct inference."""
    header = ["method", "blocks", "weights", "PSNR to direct", "largest difference", "relative error"]
    lines = []
    for row in result["rows"]:
        name = f"{row['model']}, {row['mode']}"
        if "not_measured" in row:
            lines.append([name, *missing(row, len(header) - 1)])
            continue
        if row["equal_bits"]:
            cells = ["equal bits", "0", "0"]
        else:
            distance = f"{number(row['psnr_to_direct_db'])} dB"
            cells = [distance, small(row["max_abs"]), f"{number(100 * row['relative_error'])} %"]
        lines.append([name, row["blocks"], row["weights"], *cells])
    job = result["job"]
    text = f"\n{result['source'][0].upper()}{result['source'][1:]}; {job['frames']} frames of"
    text += f" {job['size']}x{job['size']}; peers' tiles divided by {job['tile_scale']}.\n"
    return markdown_table(header, lines, texts=3) + text
