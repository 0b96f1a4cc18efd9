"""`moe-jax families`: the families of Hugging Face checkpoints and their conventions."""




def families(markdown: bool = False) -> None:
    """Print the families of transformers that load and export, with their conventions.

    Args:
        markdown: print docs/families.md instead of a table.
    """
    from moe_jax.families import describe

    if markdown:
        print(describe.markdown(), end='')
        return
    from rich.console import Console

    Console().print(describe.table())
