"""The status page in a real browser: what it shows is what /status says, whatever that is."""

from __future__ import annotations

import http.client
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from coalesce.admin.wrong import what_is_wrong

from .browser import CHROMIUM, Tab, tab
from .processes import Coalesce, Executable, RedisServer, eventually, running_coalesce
from .said import COLUMNS, Admin, at_work, in_trouble, lane, nothing_yet, running_admin
from .versions import NEWEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .forge import Said

NONE = "–"  # noqa: RUF001 (as it is shown)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

# What is cut off by the card that it stands in.
CUT = "[...document.querySelectorAll('.card')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"

# Contrast by WCAG 2.2 of every piece of text with what it stands on, where that is less than 4.5.
# <https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio>
FAINT = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
  const paper = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  let seen = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(paper(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5) faint.push([element.className, texts.currentNode.textContent, ratio]);
  }
  return [seen, faint];
})()"""


@pytest.fixture(scope="session", params=[NEWEST], ids=str)
def executable(request: pytest.FixtureRequest) -> Executable:
    """The page shows what coalesce says, whichever server it is."""
    return request.param


@pytest.fixture(scope="module")
def module_tab() -> Iterator[Tab]:
    with tab() as opened:
        yield opened


@pytest.fixture
def browser(module_tab: Tab) -> Iterator[Tab]:
    """Of a usual width; a page that complains fails the test."""
    module_tab.look(1280, 900, "light")
    module_tab.complaints.clear()
    module_tab.asked.clear()
    yield module_tab
    assert module_tab.complaints == []
    module_tab.open("about:blank")


@pytest.fixture
def admin() -> Iterator[Admin]:
    with running_admin() as admin:
        yield admin


def shown(browser: Tab, admin: Admin, says: dict[str, Any]) -> None:
    """Opened, and it has got its first answer."""
    admin.says = says
    browser.open(admin.url)
    eventually(lambda: text(browser, "#state") != "connecting")


def ask_now(browser: Tab) -> None:
    """As one who comes back to the page makes it ask."""
    browser.run("document.dispatchEvent(new Event('visibilitychange'))")


def text(browser: Tab, selector: str) -> str:
    return str(browser.run(f"document.querySelector({selector!r}).innerText"))


def field(browser: Tab, name: str) -> str:
    return text(browser, f'[data-field="{name}"]')


def rows(browser: Tab) -> list[list[str]]:
    found: list[list[str]] = browser.run(
        "[...document.querySelectorAll('#lanes tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    )
    return found


def points(browser: Tab, column: str) -> list[list[tuple[float, float]]]:
    """The lines of a chart, each by its points, in the chart's own 300 by 72."""
    path = browser.run(
        f"""(() => {{
          const figure = document.querySelector('[data-chart~="{column}"]');
          const place = figure.dataset.chart.split(" ").indexOf("{column}");
          return figure.querySelectorAll(".curve")[place].getAttribute("d");
        }})()"""
    )
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", line)] for line in path.split("M") if line
    ]


def caption(browser: Tab, column: str) -> list[str]:
    return text(browser, f'[data-chart~="{column}"] figcaption').split("\n")


def press(browser: Tab, *keys: str) -> None:
    for key in keys:
        for way in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=way, key=key)


def how_it_is_read_aloud(browser: Tab, column: str) -> str:
    return str(browser.run(f"""document.querySelector('[data-chart~="{column}"] svg').getAttribute("aria-label")"""))


@needs_chromium
def test_the_figures_are_those_of_status(browser: Tab, admin: Admin) -> None:
    shown(browser, admin, at_work())
    expected = {
        "commands_per_second": "98,356",
        "totals.commands": "1,284,512,345",
        "mean_batch": "32.2",
        "batches_per_second": "3,052",
        "round_trips_saved_per_second": "95,304",
        "most_commands_per_second": "91,990",
        "totals.mean_batch": "33.7",
        "totals.round_trips_saved": "1,246,388,889",
        "saved_share": "97.0%",
        "round_trip_p50_us": "412 µs",
        "round_trip_p99_us": "1.24 ms",
        "queue_wait_p50_us": "38 µs",
        "queue_wait_p99_us": "2.1 s",
        "clients.all": "242",
        "clients.limit": "10,000",
        "clients.shared": "231",
        "clients.memory_bytes": "11.8 MiB",
        "lanes.all": "2",
        "lanes.ready": "2",
        "lanes.in_flight": "82",
        "lanes.lost": "3",
        "leases.taken": "11",
        "leases.limit": "1,000",
        "leases.idle": "4",
    }
    assert {name: field(browser, name) for name in expected} == expected
    assert text(browser, "#state") == "serving"
    assert (text(browser, "#version"), text(browser, "#up")) == ("0.1.0", "up 2 s")
    assert text(browser, "#wrong") == ""
    assert rows(browser) == [
        ["u0", "ready", "no user, db 0, RESP3", "231", "3", "41", "32.2", "412 µs", "1", "8,412,345"],
        ["u1 (large)", "ready", "orders, db 3, RESP3", "231", "3", "41", "32.2", "18.2 ms", "1", "1,204"],
    ]
    totals = text(browser, "#totals").split("\n")
    for line in ("1,316 (1,312 connected, 4 failed)", "3 (2 closed, 1 reset)", "82.1 GiB", "1.50 KiB"):
        assert line in totals
    assert browser.run("document.title") == "98,356 commands a second – coalesce"  # noqa: RUF001 (as it is shown)


@needs_chromium
def test_the_charts_are_the_history(browser: Tab, admin: Admin) -> None:
    shown(browser, admin, at_work())
    for column in COLUMNS:
        assert points(browser, column), column
    (commands,) = points(browser, "commands_per_second")
    assert len(commands) == 200
    assert commands[-1] == (300, pytest.approx(72 - 72 * 0.9199, abs=0.1))  # 91,990 of 100,000
    assert commands[100] == (pytest.approx(300 - 99 * 300 / 239, abs=0.1), 72)  # the second without a command
    # Where there is no value there is no line, rather than a zero.
    assert [len(line) for line in points(browser, "round_trip_p50_us")] == [100, 99]
    assert how_it_is_read_aloud(browser, "queue_wait_p50_us") == (
        "The last 3 min 20 s: round trip now 400 µs, at most 400 µs; queue wait now 38 µs, at most 38 µs"
    )


@needs_chromium
@pytest.mark.parametrize(("samples", "since"), [(1, "15 s"), (20, "30 s"), (61, "2 min"), (300, "5 min")])
def test_a_young_history_fills_its_charts(browser: Tab, admin: Admin, samples: int, since: str) -> None:
    says = at_work()
    says["history"]["samples"] = [[90_000.0, 30.0, 87_000.0, 400.0, 38.0, 242, 2, 9]] * samples
    shown(browser, admin, says)
    for column in COLUMNS:
        assert caption(browser, column) == [f"{since} ago", "now"]
    ((*_, newest),) = (line,) = points(browser, "commands_per_second")
    assert newest[0] == 300
    if samples >= 15:
        assert line[0][0] < 150


@needs_chromium
def test_a_chart_has_its_scale(browser: Tab, admin: Admin) -> None:
    shown(browser, admin, at_work())
    scales = {column: text(browser, f'[data-chart~="{column}"] .scale') for column in COLUMNS}
    assert scales == {
        "commands_per_second": "100,000",
        "mean_batch": "50",
        "round_trips_saved_per_second": "100,000",
        "round_trip_p50_us": "500 µs",
        "queue_wait_p50_us": "500 µs",
        "clients": "250",
        "lanes": "2",
        "leases_lent": "10 lent",
    }


@needs_chromium
def test_one_slow_second_does_not_flatten_the_others(browser: Tab, admin: Admin) -> None:
    says = at_work()
    says["history"]["samples"][150][3] = 12_340.0
    shown(browser, admin, says)
    assert text(browser, '[data-chart~="round_trip_p50_us"] .scale') == "500 µs, at most 12.3 ms"
    slow = points(browser, "round_trip_p50_us")[1]
    assert {height for _, height in slow} == {0, 14.4}  # of 72, from the top: 400 of 500 is 14.4


@needs_chromium
def test_one_moment_is_read_in_all_charts_with_the_pointer_or_the_keys(browser: Tab, admin: Admin) -> None:
    browser.look(1153, 900, "light")  # where cards are narrowest
    shown(browser, admin, at_work())
    box = browser.run(
        """document.querySelector('[data-chart="commands_per_second"] svg').getBoundingClientRect().toJSON()"""
    )
    a_minute_ago = box["left"] + box["width"] * (1 - 60 / 239)
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=a_minute_ago, y=box["top"] + 20)
    assert caption(browser, "commands_per_second") == ["1 min ago", "91,390"]
    assert caption(browser, "round_trip_p50_us") == ["1 min ago", "400 µs / 38 µs"]
    assert browser.run(CUT) == []
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert caption(browser, "commands_per_second") == ["4 min ago", "now"]

    browser.run("""document.querySelector('[data-chart="clients"] svg').focus()""")
    press(browser, "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowRight")
    assert caption(browser, "commands_per_second") == ["1 s ago", "91,980"]
    press(browser, "Escape")
    assert caption(browser, "commands_per_second") == ["4 min ago", "now"]


@needs_chromium
def test_before_the_first_command(browser: Tab, admin: Admin) -> None:
    shown(browser, admin, nothing_yet())
    assert text(browser, "#wrong") == "No command yet. Point an application at 127.0.0.1:6380."
    assert field(browser, "commands_per_second") == "0"
    assert field(browser, "mean_batch") == field(browser, "round_trip_p50_us") == NONE
    assert not browser.run("document.querySelector('#lanes').checkVisibility()")
    assert "None yet" in text(browser, "main")
    assert re.findall(r"NaN|undefined|null|Infinity", text(browser, "body")) == []


@needs_chromium
def test_what_is_wrong_comes_first_in_plain_words(browser: Tab, admin: Admin) -> None:
    says = in_trouble()
    shown(browser, admin, says)
    assert text(browser, "#state") == "serving, with trouble"
    told = browser.run("[...document.querySelectorAll('#wrong p')].map(line => line.textContent)")
    assert told == [item["text"] for item in what_is_wrong(says)]
    assert "2 lanes have no connection to the upstream (1,204 requests waiting): Connection refused" in told[0]
    names = [row[0] for row in rows(browser)]
    assert names[0] == "u4"  # what fails, with its reason below it, once
    assert names[2:7] == ["u2", "u3", "Connection refused (redis.internal:6379)", "u0", "u1"]
    assert browser.run("document.title") == "trouble – coalesce"  # noqa: RUF001 (as it is shown)
    assert browser.run("document.images.length") == 0  # what the upstream said is text


@needs_chromium
@pytest.mark.parametrize("state", ["starting", "paused", "draining"])
def test_its_state_is_said(browser: Tab, admin: Admin, state: str) -> None:
    shown(browser, admin, at_work() | {"state": state})
    assert text(browser, "#state") == state
    assert text(browser, "#wrong").lower().startswith(f"{state}: ")
    assert browser.run("document.title") == f"{state} – coalesce"  # noqa: RUF001 (as it is shown)


@needs_chromium
def test_it_goes_on_asking_and_says_when_there_is_no_answer(browser: Tab, admin: Admin) -> None:
    shown(browser, admin, at_work())
    admin.says["now"]["commands_per_second"] = 7.25
    eventually(lambda: field(browser, "commands_per_second") == "7.3")

    admin.end()
    eventually(lambda: text(browser, "#state") == "no answer")
    assert re.fullmatch(r"coalesce does not answer\. The figures are from \d\d:\d\d:\d\d\.", text(browser, "#wrong"))
    assert field(browser, "commands_per_second") == "7.3"
    # It can be seen, too, and still be read.
    colour = "getComputedStyle(document.querySelector('.value')).color"
    assert browser.run(colour) == browser.run("getComputedStyle(document.querySelector('dt')).color")
    for scheme in ("light", "dark"):
        browser.look(1280, 900, scheme)
        assert browser.run(FAINT)[1] == []

    with running_admin(admin.port):
        eventually(lambda: text(browser, "#state") == "serving")
        assert text(browser, "#wrong") == ""
        assert not browser.run("document.body.classList.contains('silent')")
    assert browser.complaints
    assert all("ERR_CONNECTION" in complaint for complaint in browser.complaints)
    browser.complaints.clear()


@needs_chromium
def test_an_answer_that_is_none_is_not_taken_for_one(browser: Tab, admin: Admin) -> None:
    shown(browser, admin, at_work())
    del admin.says["now"]["mean_batch"], admin.says["history"]
    ask_now(browser)
    eventually(lambda: text(browser, "#state") == "no answer")
    assert "can't be shown: another version's?" in text(browser, "#wrong")
    assert browser.run("document.body.classList.contains('silent')")


@needs_chromium
def test_nothing_moves_from_one_second_to_the_next(browser: Tab, admin: Admin) -> None:
    """What is read, marked or pointed at stays where it is, whatever the figures are."""
    shown(browser, admin, at_work())
    browser.run("window.row = document.querySelector('#lanes tbody tr')")
    places = """[...document.querySelectorAll("h2, dt, dd, th, figure, .value, #lanes td")]
      .map(e => e.getBoundingClientRect()).map(({ right, top }) => [right, top])"""
    before = {}
    for width in (768, 1280):
        browser.look(width, 900, "light")
        before[width] = browser.run(places)
    says = admin.says
    says["coalesce"]["uptime_seconds"] = 3599
    says["now"] |= {"commands_per_second": 7.2, "mean_batch": None, "round_trip_p50_us": 12_300.0}
    says["now"] |= {"round_trip_p99_us": 999.0, "queue_wait_p50_us": None, "round_trips_saved_per_second": 0.0}
    says["totals"] |= {"commands": 12_284_512_345, "batches": 7}
    says["lanes"][0] |= {"commands": 123_456_789_012, "unsent": 21_204, "round_trip_us": None, "mean_batch": None}
    says["clients"] |= {"shared": 9_231, "memory_bytes": 3}
    ask_now(browser)
    eventually(lambda: field(browser, "commands_per_second") == "7.2")
    assert rows(browser)[0][-1] == "123,456,789,012"
    for width, places_before in before.items():
        browser.look(width, 900, "light")
        assert browser.run(places) == places_before, width
    assert browser.run("row.isConnected")


@needs_chromium
def test_many_lanes_do_not_hide_what_is_below_them(browser: Tab, admin: Admin) -> None:
    says = at_work()
    says["lanes"] = [lane(number) for number in range(128)]
    shown(browser, admin, says)
    assert len(rows(browser)) == 128
    assert browser.run("document.documentElement.scrollHeight") < 2000
    browser.run("document.getElementById('scroll').focus()")  # so that keys scroll it
    assert browser.run("document.activeElement === document.getElementById('scroll')")


@needs_chromium
@pytest.mark.parametrize("says", [nothing_yet, at_work, in_trouble])
def test_it_can_be_read_in_light_and_in_dark(browser: Tab, admin: Admin, says: Any) -> None:
    shown(browser, admin, says())
    for scheme, colour in (("light", "rgb(246, 246, 244)"), ("dark", "rgb(17, 19, 20)")):
        browser.look(1280, 900, scheme)
        assert browser.run("getComputedStyle(document.body).backgroundColor") == colour
        seen, faint = browser.run(FAINT)
        assert seen > 80
        assert faint == [], scheme


@needs_chromium
@pytest.mark.parametrize("says", [nothing_yet, at_work, in_trouble])
def test_nothing_is_wider_than_the_screen(browser: Tab, admin: Admin, says: Any) -> None:
    wide = says()
    if wide["now"]["commands_per_second"]:
        wide["now"] |= {"commands_per_second": 1_198_356.0, "round_trips_saved_per_second": 1_195_304.0}
        wide["now"] |= {"round_trip_p50_us": 12_300.0, "round_trip_p99_us": 12_400.0}
        wide["totals"]["commands"] *= 100
    shown(browser, admin, wide)
    for width in (1600, 1200, 1153, 1024, 961, 768, 360, 320):
        browser.look(width, 800, "light")
        assert browser.run("innerWidth") == width
        assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, width
        assert browser.run(CUT) == [], width


@needs_chromium
def test_it_asks_nobody_else(browser: Tab, admin: Admin) -> None:
    shown(browser, admin, at_work())
    asked = {url for url in browser.asked if not url.startswith("data:")}
    assert asked == {admin.url + name for name in ("", "page.css", "page.js", "status")}


def test_the_admin_serves_the_page_and_no_other_file(fresh_upstream: RedisServer) -> None:
    with running_coalesce(fresh_upstream.url, "--admin", "127.0.0.1:0") as coalesce:
        port = admin_port(coalesce)
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            status, headers, body = get(port, path)
            assert status == 200
            assert headers["Content-Type"] == f"{kind}; charset=utf-8"
            assert headers["X-Content-Type-Options"] == "nosniff"
            policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert body
        for path in ("/index.html", "/page/", "/__init__.py", "/../admin.py", "/page.js/../../admin.py"):
            assert get(port, path)[0] == 404, path


@needs_chromium
def test_a_real_one_at_work(browser: Tab, fresh_upstream: RedisServer, ask: Callable[..., Said]) -> None:
    flags = ("--admin", "127.0.0.1:0", "--upstream-wait", "0.2")
    with running_coalesce(fresh_upstream.url, *flags) as coalesce, coalesce.connect() as wire:
        port = admin_port(coalesce)
        browser.open(f"http://127.0.0.1:{port}/")
        eventually(lambda: text(browser, "#state") == "serving")

        def rate() -> str:
            assert wire.ask("SET", "k", "v") == b"+OK\r\n"
            return field(browser, "commands_per_second")

        eventually(lambda: rate() not in ("0", NONE))
        eventually(lambda: field(browser, "round_trip_p50_us") != NONE and wire.ask("PING"))

        says = json.loads(get(port, "/status")[2])
        sent = says["totals"]["commands"]
        eventually(lambda: field(browser, "totals.commands") == f"{sent:,}")
        assert field(browser, "clients.all") == field(browser, "clients.shared") == "1"
        (row,) = rows(browser)
        assert row[:4] == ["u0", "ready", "default, db 0, RESP2", "1"]
        assert row[-1] == f"{says['lanes'][0]['commands']:,}"
        assert points(browser, "commands_per_second")

        code, printed, complaint = ask("top", "--once", "--admin", f"127.0.0.1:{port}")
        assert (code, complaint) == (0, "")
        assert f"{sent:,} since the start" in printed

        fresh_upstream.kill()
        eventually(lambda: wire.ask("PING").startswith(b"-ERR coalesce: upstream unavailable"))
        eventually(lambda: text(browser, "#state") == "serving, with trouble")
        assert "no connection to the upstream" in text(browser, "#wrong")


def admin_port(coalesce: Coalesce) -> int:
    found = re.search(r"admin on http://127\.0\.0\.1:(\d+)", coalesce.stderr)
    assert found, coalesce.stderr
    return int(found[1])


def get(port: int, path: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, {name.title(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()
