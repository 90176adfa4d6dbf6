"""What a file is, by its content: whatever its name or its sender says must not contradict that. Nothing is unpacked."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from types import MappingProxyType

from models.config.settings import settings
from models.content import artifacts
from models.content.attachments import KINDS, TEXT
from models.platform.errors import Invalid

PDF, ZIP = "application/pdf", "application/zip"
WORD, EXCEL, POWERPOINT = "application/msword", "application/vnd.ms-excel", "application/vnd.ms-powerpoint"
_OFFICE = "application/vnd.openxmlformats-officedocument."
DOCX, XLSX, PPTX = (_OFFICE + kind for kind in ("wordprocessingml.document", "spreadsheetml.sheet", "presentationml.presentation"))
ENDINGS: Mapping[str, str] = MappingProxyType(
    {
        "doc": WORD, "docx": DOCX, "xls": EXCEL, "xlsx": XLSX, "ppt": POWERPOINT, "pptx": PPTX, "pdf": PDF, "zip": ZIP,
        "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp",
        **dict.fromkeys(("txt", "md", "csv", "tsv", "json", "log", "xml", "yaml", "yml", "html", "svg"), TEXT),
    }
)  # fmt: skip
# What browsers say for them too.
_ALIASES = {"application/x-zip-compressed": ZIP, "application/x-pdf": PDF, "image/jpg": "image/jpeg", "application/json": TEXT}
_MEMBERS = {"word/document.xml": DOCX, "xl/workbook.xml": XLSX, "ppt/presentation.xml": PPTX}
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
# Names of streams in the directory of such a file.
_STREAMS = {"WordDocument": WORD, "Workbook": EXCEL, "Book": EXCEL, "PowerPoint Document": POWERPOINT}
_CONTROLS = bytes({*range(32), 127} - set(b"\t\n\f\r\x1b"))
# A directory of 1 MiB has room for ten thousand members. More than a hundredfold is no document.
DIRECTORY_MOST_BYTES = 1024 * 1024
GROWTH_MOST = 100
SMALL_BYTES = 10 * 1024 * 1024
_END = struct.Struct("<4s4H2LH")


def recognise(content: bytes, *, name: str, declared: str) -> str:
    """The media type of this file, one of attachment.KINDS. declared: what its sender says it is; empty: nothing.

    Raises Invalid for a type that is not taken, one that name or sender contradict, and an archive that would unpack without end.
    """
    found = _detect(content)
    if found is None:
        kinds = ", ".join(sorted(set(KINDS.values())))
        raise _refusal(f"`{name}` is none of the files that are taken: {kinds}. A text has to be UTF-8.", code="unsupported_file")
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    said = _ALIASES.get(declared, TEXT if declared.startswith("text/") else declared)
    # Where Office is installed, browsers call a table of commas Excel's.
    is_table = ending == "csv" and said == EXCEL
    for claim in (ENDINGS.get(ending), said if said in KINDS and not is_table else None):
        if claim is not None and claim != found:
            raise _refusal(f"`{name}` is said to be {claim}, but its content is {found}. Send it as what it is.", code="wrong_file_type")
    return found


def _detect(content: bytes) -> str | None:
    if (picture := artifacts.sniff(content)) in KINDS:
        return picture
    if b"%PDF-" in content[:1024]:
        return PDF
    if content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _look_into(content)
    if content.startswith(_OLE):
        return next((kind for name, kind in _STREAMS.items() if f"{name}\0".encode("utf-16-le") in content), None)
    return TEXT if _is_text(content) else None


def _is_text(content: bytes) -> bool:
    if not content or content.translate(None, _CONTROLS) != content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _look_into(content: bytes) -> str:
    """What kind of archive it is, by its directory alone. Raises Invalid."""
    _expect_small_directory(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise _refusal("The archive is broken: its directory cannot be read.", code="broken_file") from error
    unpacked = sum(one.file_size for one in members)
    if unpacked > settings().max_unzipped_bytes or unpacked > max(SMALL_BYTES, GROWTH_MOST * len(content)):
        raise _refusal(f"The archive would unpack to {unpacked} bytes, far more than it has. Send less in it.", code="archive_too_large")
    names = {one.filename for one in members}
    found = next((kind for member, kind in _MEMBERS.items() if member in names), ZIP)
    return found if "[Content_Types].xml" in names else ZIP


def _expect_small_directory(content: bytes) -> None:
    """Raises Invalid for a directory that would take long to read, whatever it says of itself."""
    at = content.rfind(b"PK\x05\x06", max(0, len(content) - 65_536 - _END.size))
    if at < 0 or len(content) - at < _END.size:
        raise _refusal("The archive is broken: its end is missing.", code="broken_file")
    directory_bytes = _END.unpack_from(content, at)[5]
    is_zip64 = b"PK\x06\x07" in content[max(0, at - 20) : at]
    if directory_bytes > DIRECTORY_MOST_BYTES or is_zip64:
        raise _refusal("The archive has too many members. Send fewer in it.", code="archive_too_large")


def _refusal(message: str, *, code: str) -> Invalid:
    return Invalid(message, param="file", code=code)
