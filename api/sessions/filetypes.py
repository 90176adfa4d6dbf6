"""Detects a file's type from its content. Its name and declared type must not contradict that. Archives are not unpacked."""

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
EXTENSIONS: Mapping[str, str] = MappingProxyType(
    {
        "doc": WORD, "docx": DOCX, "xls": EXCEL, "xlsx": XLSX, "ppt": POWERPOINT, "pptx": PPTX, "pdf": PDF, "zip": ZIP,
        "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp",
        **dict.fromkeys(("txt", "md", "csv", "tsv", "json", "log", "xml", "yaml", "yml", "html", "svg"), TEXT),
    }
)  # fmt: skip
# Other types that browsers send for them.
_ALIASES = {"application/x-zip-compressed": ZIP, "application/x-pdf": PDF, "image/jpg": "image/jpeg", "application/json": TEXT}
_MEMBERS = {"word/document.xml": DOCX, "xl/workbook.xml": XLSX, "ppt/presentation.xml": PPTX}
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
# Names of streams in the directory of an OLE file.
_STREAMS = {"WordDocument": WORD, "Workbook": EXCEL, "Book": EXCEL, "PowerPoint Document": POWERPOINT}
_CONTROLS = bytes({*range(32), 127} - set(b"\t\n\f\r\x1b"))
# A directory of 1 MiB holds ten thousand members. A document grows less than a hundredfold when unpacked.
MAX_DIRECTORY_BYTES = 1024 * 1024
MAX_GROWTH = 100
SMALL_BYTES = 10 * 1024 * 1024
_END = struct.Struct("<4s4H2LH")


def recognise(content: bytes, *, name: str, declared: str) -> str:
    """Returns the media type of this file, one of attachments.KINDS. declared: the sender's Content-Type; may be empty.

    Raises Invalid for an unsupported type, a type that the name or the sender contradicts, and an archive bomb.
    """
    detected = _detect(content)
    if detected is None:
        kinds = ", ".join(sorted(set(KINDS.values())))
        raise _refusal(f"The type of `{name}` is not supported. Supported: {kinds}. Text must be UTF-8.", code="unsupported_file")
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    declared = _ALIASES.get(declared, TEXT if declared.startswith("text/") else declared)
    # With Office installed, browsers declare CSV files as Excel.
    is_csv = extension == "csv" and declared == EXCEL
    for claim in (EXTENSIONS.get(extension), declared if declared in KINDS and not is_csv else None):
        if claim is not None and claim != detected:
            raise _refusal(
                f"`{name}` is sent as {claim}, but its content is {detected}. Send it with its real type.", code="wrong_file_type"
            )
    return detected


def _detect(content: bytes) -> str | None:
    if (image_type := artifacts.sniff_type(content)) in KINDS:
        return image_type
    if b"%PDF-" in content[:1024]:
        return PDF
    if content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _detect_archive(content)
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


def _detect_archive(content: bytes) -> str:
    """Returns the type of an archive from its directory. Raises Invalid."""
    _expect_small_directory(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise _refusal("The archive is broken: its directory cannot be read.", code="broken_file") from error
    unpacked_bytes = sum(member.file_size for member in members)
    if unpacked_bytes > settings().max_unzipped_bytes or unpacked_bytes > max(SMALL_BYTES, MAX_GROWTH * len(content)):
        raise _refusal(
            f"The archive would unpack to {unpacked_bytes} bytes, far more than its size. Send less in it.", code="archive_too_large"
        )
    names = {member.filename for member in members}
    kind = next((kind for member, kind in _MEMBERS.items() if member in names), ZIP)
    return kind if "[Content_Types].xml" in names else ZIP


def _expect_small_directory(content: bytes) -> None:
    """Raises Invalid for a directory that would take long to read, whatever size it declares."""
    at = content.rfind(b"PK\x05\x06", max(0, len(content) - 65_536 - _END.size))
    if at < 0 or len(content) - at < _END.size:
        raise _refusal("The archive is broken: its end is missing.", code="broken_file")
    directory_bytes = _END.unpack_from(content, at)[5]
    is_zip64 = b"PK\x06\x07" in content[max(0, at - 20) : at]
    if directory_bytes > MAX_DIRECTORY_BYTES or is_zip64:
        raise _refusal("The archive has too many members. Send fewer in it.", code="archive_too_large")


def _refusal(message: str, *, code: str) -> Invalid:
    return Invalid(message, param="file", code=code)
