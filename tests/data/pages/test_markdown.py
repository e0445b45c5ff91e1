"""HTML of an answer becomes the Markdown it was written in, without the marks of the page."""

from __future__ import annotations

import pytest

from tunesmith.data.pages.markdown import html_to_markdown, is_html, strip_page_marks

CODE = (
    '<pre><div class="bg-black rounded-md"><div class="flex items-center"><span>{bar}</span>'
    '<button class="flex ml-auto"><svg></svg>Copy code</button></div><div class="p-4 overflow-y-auto">'
    '<code class="{kind}">{code}</code></div></div></pre>'
)
KATEX = (
    '<span class="math math-inline"><span class="katex"><span class="katex-mathml"><math><semantics><mrow><mi>x</mi>'
    '</mrow><annotation encoding="application/x-tex">x^2 &lt; y_1</annotation></semantics></math></span>'
    '<span class="katex-html" aria-hidden="true"><span class="mord">x2</span></span></span></span>'
)
CASES: list[tuple[str, str, str]] = [
    ("paragraphs", "<p>One  \n two.</p><p>Three.</p>", "One two.\n\nThree."),
    ("emphasis", "<p>a <strong>b </strong>c <em>d</em> <del>e</del></p>", "a **b** c *d* ~~e~~"),
    ("a break", "<p>a<br>b</p>", "a\nb"),
    ("headings", "<h1>T</h1><p>x</p><h3>U <code>v</code></h3>", "# T\n\nx\n\n### U `v`"),
    ("names in code and text", "<p>my_var_name and <code>my_other_name</code> * 2</p>", "my_var_name and `my_other_name` * 2"),
    ("ticks in code", "<p><code>a`b</code> <code>`x</code></p>", "``a`b`` `` `x ``"),
    ("a link", '<p><a href="https://e.org/a_b">here</a> <a href="https://e.org">https://e.org</a></p>', "[here](https://e.org/a_b) <https://e.org>"),
    ("an image", '<p><img src="a.png" alt="A"></p>', "![A](a.png)"),
    ("code by class", CODE.format(bar="py", kind="!whitespace-pre hljs language-python", code="<span>def</span> f():\n    return 1 &lt; 2\n"), "```python\ndef f():\n    return 1 < 2\n```"),
    ("code by its bar", CODE.format(bar="c++", kind="!whitespace-pre hljs", code="int x;"), "```c++\nint x;\n```"),
    ("code without a language", "<pre><code>a\n\n\n\nb</code></pre>", "```\na\n\n\n\nb\n```"),
    ("the button inside the code", "<pre><code>bashCopy codels -l\n</code></pre>", "```bash\nls -l\n```"),
    ("no code tag", "<pre>sqlCopy codeSELECT 1\n</pre>", "```sql\nSELECT 1\n```"),
    ("an empty block", "<p>a</p>" + CODE.format(bar="python", kind="hljs", code="") + "<p>b</p>", "a\n\nb"),
    ("ticks in a block", "<pre><code class='language-md'>```\nx\n```</code></pre>", "````md\n```\nx\n```\n````"),
    ("a tight list", "<ul><li>a</li><li>b <strong>c</strong></li></ul>", "- a\n- b **c**"),
    ("a loose list with its numbers", '<ol start="3"><li><p>a</p></li><li><p>b</p><p>c</p></li></ol>', "3. a\n\n4. b\n\n   c"),
    ("a nested list", "<ol><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ol>", "1. a\n   - b\n     - c\n2. d"),
    ("code in a list", "<ol><li><p>Run:</p><pre><code class='language-sh'>a\n\nb</code></pre></li></ol>", "1. Run:\n\n   ```sh\n   a\n\n   b\n   ```"),
    ("a table", "<table><thead><tr><th>a</th><th>b|c</th></tr></thead><tbody><tr><td>1</td><td><code>x</code></td></tr><tr><td>2</td></tr></tbody></table>", "| a | b\\|c |\n| --- | --- |\n| 1 | `x` |\n| 2 |  |"),
    ("a quotation", "<blockquote><p>a</p><p>b</p></blockquote>", "> a\n>\n> b"),
    ("a rule", "<p>a</p><hr><p>b</p>", "a\n\n---\n\nb"),
    ("maths in a line", f"<p>so {KATEX} holds</p>", "so $x^2 < y_1$ holds"),
    ("maths on its own", f'<p><span class="katex-display">{KATEX}</span></p>', "$$\nx^2 < y_1\n$$"),
    ("MathJax", '<p>a <script type="math/tex">b_1</script></p>', "a $b_1$"),
    ("powers", "<p>x<sup>2</sup></p>", "x<sup>2</sup>"),
    ("entities", "<p>&lt;div&gt; &amp;amp; caf&eacute;</p>", "<div> &amp; café"),
    ("the wrapping of the page", '<div class="markdown prose w-full"><p>a</p></div>', "a"),
    ("the counter and the footer", "<div><span>2 / 3</span><p>Yes.</p><p>Copy120 chars / 25 words</p></div>", "Yes."),
    ("an unclosed tag", "<p>a <b>b<p>c", "a **b**\n\n**c**"),
    ("blocks in a span", "<span><p>a</p><p>b</p></span>", "a\n\nb"),
    ("nothing", "<div></div>", ""),
    ("Chinese", "<ul><li>狗：<em>好</em></li></ul>", "- 狗：*好*"),
]  # fmt: skip


@pytest.mark.parametrize(("html", "markdown"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_html_becomes_the_markdown_it_was_written_in(html: str, markdown: str):
    assert html_to_markdown(html) == markdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1 / 2 How?", "How?"), ("1 / 2How?", "How?"), ("3 / 4", ""), ("1 / 25th", "1 / 25th"), ("1/2 cup", "1/2 cup"), ("of 1 / 2", "of 1 / 2")],
)  # fmt: skip
def test_only_the_counter_of_the_page_is_cut(text: str, expected: str):
    assert strip_page_marks(text) == expected


def test_markdown_is_told_from_html():
    assert is_html('<div class="markdown"><p>a</p></div>') and is_html("<p>a</p>\n")
    assert not is_html("a < b and c > d") and not is_html("<p> is a tag") and not is_html("Use <b>")
