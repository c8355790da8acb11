"""What templates may use: the limited environment means the same as Jinja's own wherever it allows something."""

from __future__ import annotations

from typing import Any

import jinja2.ext
import jinja2.sandbox
import pytest

from phlite.tokenizer import ChatTemplate

MESSAGES = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "Hello <world> & 'all'"},
    {"role": "assistant", "content": "Héllo 🦙"},
]


SOURCES = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.first }} {{ loop.last }}\n{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ m['content'] }}{% else %}none{% endfor %}",
    "{% for m in [] %}x{% else %}none{% endfor %}",
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a * b }}{% endfor %}",
    ("{% for x in [[1, [2]], [3]] recursive %}"
     "{% if x is iterable %}<{{ loop(x) }}>{% else %}{{ x }}{% endif %}{% endfor %}"),
    ("{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}"
     "{% if not loop.first %}{{ loop.previtem.role }}{% endif %}{% endfor %}"),
    "{% set ns = namespace(found=false, n=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% set messages = messages[1:] %}{{ messages|length }}{{ messages[0].role }}{{ messages[-1].role }}",
    "{{ messages[::-1][0].role }}{{ messages[:1]|length }}{{ 'abcdef'[1:5:2] }}{{ 'abc'[-1] }}",
    "{% if messages[0].role == 'system' and not tools %}{{ messages[0].content | trim }}{% endif %}",
    "{{ 'tools' in messages[0] }}{{ 'role' in messages[0] }}{{ 'Hell' in messages[1].content }}{{ 1 not in [1] }}",
    "{{ 1 < 2 <= 2 }}{{ 3 > 2 != 1 }}{{ 'a' ~ 1 ~ none ~ true }}{{ -5 // 2 }}{{ 7 % 3 }}{{ 2 ** 10 }}{{ 1 / 4 }}",
    "{{ 'ab' * 3 }}{{ [1] * 2 }}{{ [1] + [2] }}{{ '%s-%03d' % ('x', 7) }}{{ '{}{:>4}'.format('a', 'b') }}",
    "{{ 'yes' if messages else 'no' }}{{ nope is defined }}{{ tools is none }}{{ nope | default('d') }}",
    "{{ {'a': 1, 'b': [1, 2]} }}{{ {'a': 1}.a }}{{ {'a': 1}['a'] }}{{ {'a': 1}.get('b', 2) }}{{ (1,) }}{{ [] }}",
    "{{ 'a,b,c'.split(',') }}{{ ' x '.strip() }}{{ 'abc'.startswith('ab') }}{{ '-'.join(['a', 'b']) }}",
    "{{ 'abc'.replace('b', 'x') }}{{ 'Abc'.upper() }}{{ 'aXbX'.rsplit('X', 1) }}{{ 'abc'.find('c') }}",
    "{{ [3, 1, 2]|sort }}{{ [3, 1]|min }}{{ [1, 1]|unique|list }}{{ 'abc'|list }}{{ [1, 2]|reverse|list }}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ messages|rejectattr('role', 'in', ['user'])|map(attribute='content')|list }}{{ [1, 2]|select('odd')|list }}",
    "{{ ['a', 'b']|map('upper')|join }}{{ 'a b'|title }}{{ 'abc'|capitalize }}{{ 'abc'|length }}{{ [1]|first }}",
    "{{ 'a\nb\n\nc'|indent(2) }}{{ 'a\nb'|indent('>', true, true) }}{{ 'x'|replace('x', 'yy') }}{{ '%s!'|format(3) }}",
    "{{ 3.14159|round(2) }}{{ '42'|int + 1 }}{{ '1.5'|float }}{{ 42|string }}{{ -3|abs }}",
    "{{ 'long text here'|truncate(8) }}",
    "{{ messages|groupby('role')|length }}{{ {'b': 1, 'a': 2}|dictsort }}{{ {'a': 1}|items|list }}",
    "{{ messages[1].content|e }}{{ '<b>'|safe }}{{ ('<b>'|safe) + '<i>' }}",
    "{{ range(5)|list }}{{ range(2, 10, 3)|list }}{{ dict(a=1) }}",
    ("{% macro turn(role, text='-') %}<{{ role }}>{{ text }}{{ caller() if caller else '' }}{% endmacro %}"
     "{{ turn('a') }}{{ turn('b', text='t') }}{% call turn('c') %}inner{% endcall %}"),
    "{% set text %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}[{{ text }}]",
    "{% filter upper %}{{ messages[0].role }} text{% endfilter %}",
    "{% block turns %}{{ messages|length }}{% endblock %}{{ self.turns() }}",
    "  {%- if true %}  a  {%- endif -%}  \n  {% if true %}\n  b\n  {% endif %}\n",
    "{# a comment #}{% raw %}{{ x }}{% endraw %}\n\n",
    "{{ messages[0].role is string }}{{ 1 is number }}{{ {} is mapping }}{{ 4 is divisibleby 2 }}{{ 1 is sameas 1 }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ not true or false }}{{ (1, 2) == (1, 2) }}{{ 'a' < 'b' }}",
    "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ unknown }}",
]  # fmt: skip


def by_jinja(source: str) -> str:
    """Render with the environment that transformers uses."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    return environment.from_string(source).render(
        messages=MESSAGES, tools=None, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("source", SOURCES)
def test_templates_mean_what_they_mean_to_jinja(source: str) -> None:
    assert ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(MESSAGES) == by_jinja(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'a': '<é>'}|tojson }}", '{"a": "<é>"}'),
        ("{{ {'a': 'é🦙'}|tojson(ensure_ascii=true) }}", '{"a": "\\u00e9\\ud83e\\udd99"}'),
        ("{{ {'b': 1, 'a': [1]}|tojson(indent=2, sort_keys=true) }}", '{\n  "a": [\n    1\n  ],\n  "b": 1\n}'),
        ("{{ [1, 2]|tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}b", "a1b"),
        ("{{ strftime_now('%%') }}", "%"),
    ],
)
def test_what_transformers_adds_to_jinja(source: str, expected: str) -> None:
    assert ChatTemplate(source).render(MESSAGES) == expected


def test_a_long_conversation_is_within_the_limits() -> None:
    source = (
        "{% set ns = namespace(text='', n=0) %}{% for m in messages %}{% if m.role == messages[0].role %}"
        "{% set ns.n = ns.n + 1 %}{% endif %}{% set ns.text = ns.text ~ '<|' ~ m.role ~ '|>' ~ m.content|trim %}"
        "{% if loop.last and messages|length > 3 %}{{ ns.text }}{% endif %}{% endfor %}"
    )
    messages: list[dict[str, Any]] = [{"role": "user", "content": "word " * 400}] * 500
    assert len(ChatTemplate(source).render(messages)) == 500 * (len("<|user|>") + 400 * 5 - 1)
