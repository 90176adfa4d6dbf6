"""The address of a credential's upstream: its protocol (OpenAI or Azure), base URL and API version."""

from __future__ import annotations

import re

from models.config import upstream_url
from models.platform.errors import Invalid

OPENAI, AZURE = "openai", "azure"
KINDS = (OPENAI, AZURE)
_VERSION = re.compile(r"[0-9A-Za-z.-]{1,40}")


def normalize(kind: str, *, base_url: str | None, api_version: str | None) -> tuple[str | None, str | None]:
    """The checked base_url and api_version as they are stored; an empty one is None.

    kind: openai, whose base_url None is OPENAI_BASE_URL; azure, whose base_url is that of the resource, and whose api_version None is the
    v1 API. Raises Invalid, with an example.
    """
    if kind not in KINDS:
        raise Invalid(f"`kind` is one of {', '.join(KINDS)}.", param="kind")
    is_azure = kind == AZURE
    if api_version and (not is_azure or not _VERSION.fullmatch(api_version)):
        raise Invalid("`api_version` goes with kind azure, and is a version such as 2024-10-21.", param="api_version")
    if is_azure and not base_url:
        raise Invalid(f"`base_url` is required for kind azure, for example {upstream_url.AZURE_EXAMPLE}", param="base_url")
    try:
        checked = upstream_url.base_url(base_url, setting="`base_url`", is_azure=is_azure) if base_url else None
    except ValueError as error:
        raise Invalid(f"{error}", param="base_url") from None
    return checked.removesuffix("/v1").removesuffix("/openai") if checked and is_azure else checked, api_version or None
