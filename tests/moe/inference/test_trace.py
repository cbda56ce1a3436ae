"""Traces: gates and the probabilities that each expert alone gives, and the page that shows them, in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from moe.config import ROUTER_CONTEXTS
from moe.errors import UserError
from moe.inference.expert_choice import expert_bias
from moe.inference.generation import generate_many
from moe.inference.trace import entropy, trace, trace_page
from moe.router import Routing
from moe.tokenizer import train_sentencepiece

PROMPT, LENGTH = [5, 9, 31, 7, 80, 2, 44], 9


@pytest.fixture
def config(tiny_config):
    return replace(tiny_config, num_experts=3, expert_languages=("python", "java", "cpp"), router_half_life=6.0)


@torch.inference_mode()
def slowly(model, tokens, start, bias):
    """The definition, without a cache: all of the text but its last token is routed, the last is forced."""
    probabilities, forced = [], []
    for place in range(start, len(tokens)):
        text = torch.tensor([tokens[:place]])
        added = None if bias is None else torch.tensor(bias).expand(place, -1)
        whole = model(text, expert_bias=added)
        probabilities.append(whole.logits[0, -1].softmax(-1)[tokens[place]])
        row = []
        for expert in range(3):
            for block in model.layers:

                def forced_last(*arguments, route=block.feed_forward.route, expert=expert):
                    found = route(*arguments)
                    gates, ids = found.gates.clone(), found.expert_ids.clone()
                    gates[-1], ids[-1] = torch.tensor([1.0, 0.0]), torch.tensor([expert, (expert + 1) % 3])
                    return Routing(found.router_logits, gates, ids)

                block.feed_forward.route = forced_last
            row.append(model(text, expert_bias=added).logits[0, -1].softmax(-1)[tokens[place]])
            for block in model.layers:
                del block.feed_forward.route
        forced.append(torch.stack(row))
    return torch.stack(probabilities), torch.stack(forced)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("context", ROUTER_CONTEXTS)
def test_a_trace_is_what_the_model_does(config, make_model, context, window):
    model = make_model(replace(config, router_context=context, sliding_window=window))
    for bias in (None, expert_bias(config, None, experts=[0, 2])):
        answer = generate_many(model, [PROMPT], max_new_tokens=LENGTH)[0].tokens
        found = trace(model, PROMPT, answer, bias)
        tokens = [*PROMPT, *answer]
        probabilities, forced = slowly(model, tokens, len(PROMPT), bias)
        assert found.tokens == tokens and found.prompt_tokens == len(PROMPT)
        torch.testing.assert_close(found.probabilities, probabilities.float(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.forced, forced.float(), rtol=1e-4, atol=1e-6)
        added = None if bias is None else torch.tensor(bias).expand(len(tokens), -1)
        routing = model(torch.tensor([tokens]), expert_bias=added).routing
        for layer, decided in enumerate(routing):
            dense = torch.zeros(len(tokens), 3, dtype=torch.float64).scatter_add_(
                1, decided.expert_ids, decided.gates.double()
            )
            torch.testing.assert_close(found.gates[:, layer], dense[:-1])
        best = found.likely[..., 0, :]
        assert (best[..., 1] >= found.forced.double() - 1e-6).all()
        hit = best[..., 0] == torch.tensor(answer)[:, None]
        torch.testing.assert_close(best[..., 1][hit], found.forced.double()[hit])


def test_short_texts_and_dense_models(config, tiny_config, make_model):
    model = make_model(config)
    assert trace(model, [3], []).gates.shape == (0, 2, 3)
    assert trace(model, [3], [4]).forced.shape == (1, 3)
    with pytest.raises(UserError, match="no experts"):
        trace(make_model(tiny_config), [3], [4])
    assert entropy([0.5, 0.5, 0.0]) == 1.0 and entropy([1.0]) == 0.0


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><script>document.title='ran'</script><b>&amp;"
PROBE = """<!doctype html><iframe id="f" src="trace.html" style="width:WIDTHpx;height:700px;border:0"></iframe>
<script>document.getElementById("f").onload = () => {
  const frame = document.getElementById("f").contentWindow, page = frame.document;
  const spans = [...page.querySelectorAll("#text > span")], panel = page.getElementById("panel");
  const at = () => panel.querySelector("h2").textContent;
  const press = key => page.activeElement.dispatchEvent(new frame.KeyboardEvent("keydown", {key, bubbles: true}));
  const moved = [at()];
  page.querySelector("[tabindex='0']").focus();
  const keys = ["ArrowRight", "ArrowLeft", "ArrowLeft", "Home", "End", "ArrowUp", "ArrowDown"];
  for (const key of keys) { press(key); moved.push(at()); }
  spans[2].dispatchEvent(new frame.MouseEvent("mouseenter"));
  const hovered = at();
  page.getElementById("text").dispatchEvent(new frame.MouseEvent("mouseleave"));
  const style = frame.getComputedStyle(page.body);
  const numbers = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const found = {title: page.title, moved, hovered, left: at(), stops: page.querySelectorAll("[tabindex='0']").length,
    focused: spans.indexOf(page.activeElement), text: spans.map(x => x.textContent).join(""), count: spans.length,
    tables: [...panel.querySelectorAll("table")].map(x => [...x.rows].map(y => [...y.cells].map(z => z.textContent))),
    tinted: new Set(spans.slice(3).map(x => frame.getComputedStyle(x).backgroundColor)).size,
    scroll: page.documentElement.scrollWidth, width: page.documentElement.clientWidth,
    background: numbers(style.backgroundColor), color: numbers(style.color)};
  document.body.textContent = "";
  document.body.dataset.found = JSON.stringify(found);
}</script>"""


class Body(HTMLParser):
    """The page's findings."""

    def handle_starttag(self, tag, attributes):
        if tag == "body":
            self.found = json.loads(dict(attributes)["data-found"])


@pytest.fixture
def page(config, make_model, tmp_path):
    tokenizer = train_sentencepiece(["def total(xs):\n    return sum(xs)\n"] * 20, 400, None)
    model = make_model(replace(config, vocab_size=tokenizer.vocab_size))
    prompt, answer = tokenizer.encode("é </b>\n" + EVIL), tokenizer.encode("def total(xs):\n\treturn sum(xs)\n")
    traced = trace(model, prompt, answer)
    (tmp_path / "trace.html").write_text(trace_page(traced, tokenizer, ["python", EVIL, "cpp"], [0, 1], EVIL))
    return tmp_path, traced, len(prompt), len(answer)


def test_the_page_is_self_contained_and_escaped(page):
    folder, *_ = page
    text = (folder / "trace.html").read_text()
    assert EVIL not in text and text.count("<script>") == 1
    assert not re.search(r"(?:src|href)=|url\(|@import|https?://", text)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (360, True)], ids=["wide-light", "narrow-dark"])
def test_a_browser_shows_each_token_by_pointer_and_by_keyboard(page, width, dark):
    folder, traced, read, written = page
    (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--hide-scrollbars", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--window-size=1400,1000"]
    command += [
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
        f"file://{folder}/probe.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    body = Body()
    body.feed(done.stdout)
    found = body.found
    assert found["title"] == EVIL, "text ran as a script"
    numbers = [int(re.match(r"token (\d+)", name)[1]) for name in found["moved"]]
    assert numbers[:6] == [read + 1, read + 2, read + 1, read, 1, read + written]
    assert numbers[6] < numbers[5] and numbers[6] < numbers[7] <= numbers[5], "up and down go by lines"
    assert found["hovered"].startswith("token 3:") and found["left"] == found["moved"][-1]
    assert found["stops"] == 1 and found["focused"] == numbers[7] - 1 and found["count"] == read + written
    assert "def total(xs):" in found["text"]
    place = numbers[7] - 1
    forced, gates = found["tables"]
    assert [row[0] for row in forced] == ["expert", "python", EVIL, "cpp"]
    assert [row[0] for row in gates] == ["layer", "all", "0", "1"]
    for row, layer in zip(gates[2:], traced.gates[place - 1].tolist()):
        assert [float(cell or 0) for cell in row[1:]] == pytest.approx(layer, abs=0.006)
    assert found["tinted"] > 1 and found["width"] == width >= found["scroll"]
    light, text = sum(found["background"]) / 3, sum(found["color"]) / 3
    assert (light < 60 and text > 180) if dark else (light > 200 and text < 70)
