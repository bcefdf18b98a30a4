"""Tables of what TensorRT-RTX builds."""

from harness.tables.format import Result, markdown_table, table


@table("rtx-engines", "rtx-engines")
def rtx_engines(result: Result) -> str:
    """Returns a row per model, precision and graph."""
    header = ("model", "precision", "graph", "built in", "size", "for default sizes")
    header += ("kernels", "products", "casts", "moves", "state kernels", "state moves")
    counts = ("kernels", "products", "casts", "moves", "state_kernels", "state_moves")
    rows = []
    for row in result["rows"]:
        ranges = row["ranges"]
        wide = "–" if ranges is None else f"{ranges['seconds']:.0f} s, {ranges['bytes'] / 1e6:.0f} MB"
        cells = [row["model"], row["precision"], row["graph"], f"{row['seconds']:.1f} s"]
        rows.append([*cells, f"{row['bytes'] / 1e6:.1f} MB", wide, *(str(row[name]) for name in counts)])
    height, width = result["size"]
    text = markdown_table(header, rows, texts=3)
    machine = f"{result['machine']['cpu']}, CPU time of all threads"
    job = f"{height}x{width}, {result['latents']} latents"
    return f"{text}\nTensorRT-RTX {result['builder']}; {job}; {machine}.\n"
