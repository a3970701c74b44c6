"""The words and codes that every stage shares: roles of tokens, names of axes.

Codes are what stands in a store, so they never change meaning; a new role gets a new number at the end.
"""

__all__ = ["ROLES", "ROLE_CODES", "role_flags"]

ROLES: tuple[str, ...] = ("special", "preamble", "image", "instruction", "template", "target", "generated")
"""Roles by code: ``ROLES[code]`` is the name.

``special`` BOS and EOS; ``preamble`` template text before the image, which never sees it; ``image``; ``instruction``
the prompt itself; ``template`` scaffolding after the image; ``target`` teacher-forced text; ``generated``.
"""

ROLE_CODES: dict[str, int] = {name: code for code, name in enumerate(ROLES)}


def role_flags() -> dict[str, object]:
    """CF attributes that make an integer role array readable without this package.

    Returns
    -------
    dict
        ``flag_values`` (list of int) and ``flag_meanings`` (blank-separated names), as the CF conventions define them.
    """
    return {"flag_values": list(ROLE_CODES.values()), "flag_meanings": " ".join(ROLES)}
