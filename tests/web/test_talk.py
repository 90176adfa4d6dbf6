"""Chat on the page, in both languages and on desktop and phone: assistants, questions, waiting, errors, files."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.clients.conftest import System
from tests.support.browser import DESK, PHONE, Visit
from tests.support.programs.process import until
from tests.web.conftest import PATIENCE_MS, Chat, enter
from tests.web.measures import serious_violations
from tests.web.words import WORDS

SIZES = {"desk": DESK, "phone": PHONE}
CODE = "Look:\n\n```python\nprint('hi')\n```"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("language", WORDS)
def test_visitor_creates_an_assistant_and_gets_an_answer(visit: Visit, system: System, language: str, size: str) -> None:
    words = WORDS[language]
    chat = enter(visit, system, language=language, viewport=SIZES[size])
    chat.shot(f"{language}-{size}-1-empty")
    chat.make("Tea", prompt="You know all about tea.")
    answer = chat.ask(CODE)

    expect(answer.locator("code.hljs")).to_have_text("print('hi')\n")
    expect(answer.get_by_role("button", name=words.copy)).to_be_visible()
    mine, theirs = chat.mine().last.bounding_box(), answer.bounding_box()
    assert mine and theirs and mine["x"] + mine["width"] > theirs["x"] + theirs["width"] - 1 and theirs["x"] < mine["x"]
    assert ["system", "You know all about tea."] in system.calls("print('hi')")[-1].before

    chat.say(f"[[fake:hold]] first {chat.key}")
    system.upstream.wait_for_held(1)
    chat.say("second")
    chat.say("third")
    expect(chat.page.locator(".ticket .waits")).to_have_text(words.please_wait)
    expect(chat.tickets().nth(1)).to_contain_text(words.in_line)
    expect(chat.tickets().nth(1)).to_contain_text(words.earlier)
    chat.shot(f"{language}-{size}-2-waiting")
    assert [] == serious_violations(chat.page)
    assert chat.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    system.upstream.release()

    expect(chat.answers()).to_have_count(4, timeout=PATIENCE_MS)
    assert ["echo: second", "echo: third"] == [text.strip() for text in chat.answers().all_inner_texts()[2:]]
    chat.shot(f"{language}-{size}-3-answered")
    if size == "phone":
        chat.button(words.back).click()
        expect(chat.page.locator(".card-last")).to_have_text("echo: third")
    chat.button(words.settings).click()
    expect(chat.page.locator(".chart")).to_be_visible()
    chat.shot(f"{language}-{size}-4-settings")
    assert [] == serious_violations(chat.page)


def test_a_card_can_be_found_renamed_deleted_and_moves_up_when_written_to(chat: Chat) -> None:
    for name in ("Tea", "Coffee"):
        chat.make(name)
    names = chat.page.locator(".card-name")
    expect(names).to_have_text(["Coffee", "Tea"])
    chat.page.locator(".card-face", has_text="Tea").click()
    chat.ask("hello")
    expect(names).to_have_text(["Tea", "Coffee"])

    chat.page.get_by_label("Search").fill("cof")
    expect(names).to_have_text(["Coffee"])
    chat.page.get_by_label("Search").fill("")
    chat.button("What to do with Coffee").click()
    chat.page.get_by_role("menuitem", name="Rename and edit").click()
    chat.page.get_by_label("Name", exact=True).fill("Cocoa")
    chat.button("Save").click()
    expect(names).to_have_text(["Tea", "Cocoa"])
    chat.button("What to do with Cocoa").click()
    chat.page.get_by_role("menuitem", name="Delete").click()
    chat.button("Delete").click()
    expect(names).to_have_text(["Tea"])


def test_reopened_page_shows_the_same_ticket_and_then_the_answer(chat: Chat) -> None:
    chat.make("Tea")
    chat.say(f"[[fake:hold]] patience {chat.key}")
    expect(chat.tickets()).to_have_count(1)
    chat.system.upstream.wait_for_held(1)
    chat.page.reload()
    expect(chat.page.locator(".ticket .waits")).to_be_visible(timeout=PATIENCE_MS)

    other = chat.page.context.new_page()
    other.goto(chat.page.url)
    chat.page.close()
    assert "" == (other.evaluate("sessionStorage.getItem('nowserving.key') ?? ''"))
    other.locator("#door-key").fill(chat.key)
    other.locator("button.main").click()
    expect(other.locator(".ticket")).to_have_count(1, timeout=PATIENCE_MS)
    chat.system.upstream.release()
    expect(other.locator(".message.theirs")).to_contain_text(f"echo: [[fake:hold]] patience {chat.key}", timeout=PATIENCE_MS)
    assert 1 == len(chat.system.calls(f"patience {chat.key}"))


def test_question_can_be_cancelled_and_the_next_one_runs(chat: Chat) -> None:
    chat.make("Tea")
    chat.say(f"[[fake:hold]] stop {chat.key}")
    chat.system.upstream.wait_for_held(1)
    chat.say("next")
    expect(chat.tickets()).to_have_count(2)
    chat.tickets().nth(1).get_by_role("button", name="Cancel this question").click()
    expect(chat.troubles()).to_have_text(re.compile("Cancelled"))
    chat.tickets().first.get_by_role("button", name="Cancel this question").click()
    expect(chat.troubles()).to_have_count(2, timeout=PATIENCE_MS)
    chat.ask("and on")


def test_title_and_notification_announce_an_answer(chat: Chat) -> None:
    chat.make("Tea")
    chat.page.evaluate("""() => {
        window.notified = [];
        window.Notification = class { static permission = "granted"; constructor(title) { window.notified.push(title); } };
        Object.defineProperty(document, "visibilityState", { get: () => window.isAway ? "hidden" : "visible", configurable: true });
        window.isAway = true;
        document.dispatchEvent(new Event("visibilitychange"));
    }""")
    chat.ask("are you there?")

    # A hidden page polls every five seconds.
    expect(chat.page).to_have_title("(1) an answer is there", timeout=PATIENCE_MS)
    assert ["Tea has answered"] == chat.page.evaluate("window.notified")
    chat.page.evaluate("window.isAway = false; document.dispatchEvent(new Event('visibilitychange'))")
    expect(chat.page).to_have_title("nowserving")


def test_error_ends_the_wait_names_the_next_step_and_offers_a_retry(chat: Chat) -> None:
    chat.make("Tea")
    chat.say(f"[[fake:status=400;code=context_length_exceeded;times=1]] {chat.key}")
    expect(chat.troubles()).to_contain_text("That was too long for the model.", timeout=PATIENCE_MS)
    chat.shot("en-desk-5-error")
    chat.button("Try again").click()
    expect(chat.answers()).to_have_count(1, timeout=PATIENCE_MS)

    chat.button("Send").click()
    expect(chat.page.locator(".notice")).to_have_text("Write something first.")
    chat.ask("the button still works")


def test_message_written_offline_is_sent_once_when_online(visit: Visit, system: System) -> None:
    chat = enter(visit, system, forgives=("ERR_INTERNET_DISCONNECTED",))
    chat.make("Tea")
    chat.page.context.set_offline(True)
    chat.say(f"from afar {chat.key}")
    expect(chat.page.get_by_text("It goes out as soon as there is one.")).to_be_visible()
    chat.shot("en-desk-6-offline")
    chat.page.context.set_offline(False)

    expect(chat.answers()).to_have_count(1, timeout=PATIENCE_MS)
    expect(chat.page.locator(".offline")).to_have_count(0)
    assert 1 == len(system.calls(f"from afar {chat.key}"))


def test_refused_key_is_explained(visit: Visit, system: System) -> None:
    chat = enter(visit, system, key="ns-unknown", forgives=("401",))

    expect(chat.page.locator(".notice")).to_have_text("The key is not accepted. Check it in the settings.")


def test_turns_can_be_copied_asked_again_and_deleted(chat: Chat) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.make("Tea")
    chat.ask("one of a kind")
    chat.page.locator(".message.theirs").hover()
    chat.page.locator(".message.theirs").get_by_role("button", name="Copy").click()
    assert "echo: one of a kind" == chat.page.evaluate("navigator.clipboard.readText()")
    chat.page.locator(".message.mine").get_by_role("button", name="Ask again").click()
    expect(chat.answers()).to_have_count(2, timeout=PATIENCE_MS)
    chat.page.locator(".message.mine").first.get_by_role("button", name="Delete question and answer").click()
    expect(chat.answers()).to_have_count(1)
    chat.page.reload()
    expect(chat.answers()).to_have_count(1, timeout=PATIENCE_MS)


def test_history_loads_older_turns_on_scrolling_up(chat: Chat) -> None:
    chat.make("Tea")
    for n in range(24):
        chat.say(f"turn number {n}.")
    expect(chat.answers().get_by_text("echo: turn number 23.")).to_be_visible(timeout=2 * PATIENCE_MS)
    until(lambda: chat.tickets().count() == 0, what="all answered", within_s=60)
    chat.page.reload()
    expect(chat.answers().get_by_text("echo: turn number 23.")).to_be_in_viewport(timeout=PATIENCE_MS)
    assert 20 == chat.mine().count()

    chat.page.locator(".scroller").evaluate("box => box.scrollTo({ top: 0 })")
    expect(chat.mine()).to_have_count(24)
    assert "turn number 0." == chat.mine().first.inner_text()


def drop_event(page: Page, kind: str, name: str, content: str, mime: str) -> None:
    """Dispatch a paste or drop event with a file, as browsers do."""
    page.evaluate(
        """([kind, name, content, mime]) => {
            const carried = new DataTransfer();
            carried.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, { type: mime }));
            const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: carried, bubbles: true, cancelable: true });
            document.querySelector(".composer textarea").dispatchEvent(event);
        }""",
        [kind, name, content, mime],
    )


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def test_files_from_button_paste_and_drop_show_kind_name_and_size(chat: Chat) -> None:
    chat.make("Tea")
    chat.page.get_by_label("Attach pictures or files").set_input_files(
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x" * 2500}
    )
    drop_event(chat.page, "paste", "pasted.png", PIXEL, "image/png")
    drop_event(chat.page, "drop", "dropped.txt", "aGVsbG8=", "text/plain")
    expect(chat.page.locator(".chosen-files .file[data-kind=txt]")).to_have_count(2)
    expect(chat.page.locator(".chosen-files .file[data-kind=image]")).to_have_count(1)
    chat.ask("what is in these?")

    files = chat.page.locator(".message.mine a.file")
    expect(files).to_have_count(2)
    expect(files.first).to_contain_text("notes.txt")
    expect(files.first.locator(".file-size")).to_have_text("2.5 kB")
    expect(chat.page.locator(".message.mine .picture img")).to_have_js_property("naturalWidth", 1)
    chat.shot("en-desk-7-files")


def test_emoji_are_found_by_name_and_speech_is_inserted(chat: Chat) -> None:
    chat.make("Tea")
    chat.button("Emoji").click()
    chat.page.get_by_label("Search emoji").fill("teacup")
    chat.page.locator(".emoji-grid button").first.click()
    chat.page.evaluate("""() => {
        window.SpeechRecognition = class {
            start() { setTimeout(() => { this.onresult({ results: [[{ transcript: "green please" }]] }); this.onend(); }); }
        };
    }""")
    chat.button("Speak").click()
    expect(chat.page.locator(".composer textarea")).to_have_value("🍵 green please")
    chat.button("Video call").click()
    expect(chat.page.locator(".notice")).to_have_text("Not yet.")


def test_images_are_requested_shown_enlarged_and_downloaded(chat: Chat) -> None:
    chat.make("Painter")
    chat.button("Make pictures").click()
    chat.page.get_by_role("combobox", name="Model").select_option(index=1)
    chat.page.get_by_role("combobox", name="Size").select_option("1024x1024")
    chat.page.get_by_role("combobox", name="Number").select_option("2")
    chat.page.get_by_role("combobox", name="Quality").select_option("low")
    chat.say("a cup of tea")
    pictures = chat.page.locator(".message.theirs .picture")
    expect(pictures).to_have_count(2, timeout=PATIENCE_MS)
    chat.shot("en-desk-8-pictures")
    pictures.first.click()
    with chat.page.expect_download() as caught:
        chat.page.get_by_role("link", name="Download").click()

    assert caught.value.path().read_bytes().startswith(b"\x89PNG")
