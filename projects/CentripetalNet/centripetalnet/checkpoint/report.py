"""What a training takes from a file that does not match its model completely."""

from collections.abc import Iterable


def starting_report(
    path: str,
    taken: list[str],
    anew: list[str],
    misfits: dict[str, str],
    used: list[str],
    unused: list[str],
    num_filled: int,
) -> str:
    """Describes all tensors of a model and of a file, by module.

    Args:
        path: of the file.
        taken: the model's names of the tensors that the file has.
        anew: the model's other names.
        misfits: of ``anew`` those that have another shape in the file, with both shapes.
        used: the file's names of the tensors in ``taken``.
        unused: the file's other names.
        num_filled: number of statistics of frozen norms that the file does not have.
    """
    begin = f"{len(anew)} of the model's {len(taken) + len(anew) + num_filled} begin anew"
    lines = [
        f"{len(taken)} of {len(taken) + len(unused)} tensors from {path} are taken; "
        f"{begin if anew else 'none of the model begin anew'}"
    ]
    missing = [x for x in anew if x not in misfits]
    others = [*taken, *misfits]
    shapes = [f"{name}: {text}" for name, text in misfits.items()]
    for title, items in (
        ("taken", by_module(taken, anew)),
        ("begin anew (weights at random)", sorted([*by_module(missing, others), *shapes])),
        ("not used, of the file", by_module(unused, used)),
    ):
        if items:
            lines += [f"{title}:", *(f"  {x}" for x in items)]
    if num_filled:
        lines.append(
            f"statistics of frozen norms, which the file leaves at mean 0, variance 1: {num_filled}"
        )
    return "\n".join(lines)


def by_module(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Names sorted; those of a module that has none of ``others`` are one item, "module.* (count)".

    Of a module that has others, the names are one item, "module.{bias, weight}".

    Args:
        names: such as "heads.0.tl.heatmap.1.bias".
        others: not to be included in an item.
    """
    mixed = {module for name in others for module in _modules(name)}
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in names:
        whole = next((x for x in _modules(name) if x not in mixed), None)
        module = name.rpartition(".")[0] if whole is None else whole
        groups.setdefault((module, whole is not None), []).append(name)
    items = []
    for (module, is_whole), members in groups.items():
        if len(members) == 1 or not module:
            items += members
        elif is_whole:
            items.append(f"{module}.* ({len(members)})")
        else:
            ends = sorted(x[len(module) + 1 :] for x in members)
            items.append(f"{module}.{{{', '.join(ends)}}}")
    return sorted(items)


def _modules(name: str) -> list[str]:
    """The modules around a tensor, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
