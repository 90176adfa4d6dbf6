"""Texts of the page in each language, as far as tests search for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    new: str
    name: str
    prompt: str
    save: str
    copy: str
    please_wait: str
    in_line: str
    earlier: str
    rpm: str
    back: str
    settings: str


WORDS = {
    "en": Words(
        "New assistant",
        "Name",
        "System prompt",
        "Save",
        "Copy",
        "Please wait …",
        "No. ",
        "an earlier question of this conversation",
        r"the key's requests per minute, free at \d\d:\d\d:\d\d",
        "Back to the list",
        "Settings",
    ),
    "zh": Words(
        "新建助手",
        "名称",
        "系统提示词",
        "保存",
        "复制",
        "请稍后…",
        "排队第 ",
        "本对话中更早的问题",
        r"密钥的每分钟请求数, \d\d:\d\d:\d\d 可用",
        "返回列表",
        "设置",
    ),
}
