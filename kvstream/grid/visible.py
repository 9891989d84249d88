"""Text for a terminal: names of models, documents and policies come from files and may hold anything."""


def visible(text: str) -> str:
    """Write what a terminal would obey or hide, such as line ends and escape codes, as `repr` does."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
