"""Numbers of things, as people write them."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural: `1 row`, `2 batches`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(('ch', 'sh', 's', 'x')) else 's'}"
