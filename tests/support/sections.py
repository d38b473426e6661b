"""Changes to sections of the configuration, which are frozen."""


def changed(section, **keys):
    """Return the section with other values, which are validated."""
    return type(section)(**{**dict(section), **keys})
