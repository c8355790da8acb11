"""Templates that want to hang, to fill the memory or to get out end in an error within about a second."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from phlite.errors import ModelFileError
from phlite.tokenizer import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}]
# Processor time, so that a busy machine does not fail the test. A template gets 0.75 s, its compilation comes on top.
MAX_SECONDS = 2.5


def grow(step: str, *, start: str = "'aa'", times: str = "60", end: str = "") -> str:
    """Return a template that repeats an assignment of ns.x."""
    return (
        f"{{% set ns = namespace(x={start}, y={start}) %}}{{% for i in range({times}) %}}"
        f"{{% set ns.x = {step} %}}{{% endfor %}}{end}"
    )


NEST = (
    "{% set ns = namespace(x=[1], y=[1]) %}"
    "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
)
FOR = "{% for i in range(99999) %}"
END = "{% endfor %}"
BIG = "{% set x = 'a' * 9**7 %}"
NEST_TUPLES = NEST.replace("[1]", "(1,)").replace("[ns.x, ns.x]", "(ns.x, ns.x)")

LOOPS = {
    "one huge range": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": FOR + FOR + END + END,
    "loops that drop every item": FOR + "{% for j in range(99999) if false %}" + END + END,
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(99) }}",
    "a recursive loop": "{% for i in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a block that prints itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "callers in callers": "{% macro f() %}{{ caller() }}{% endmacro %}"
    + FOR
    + "{% call f() %}{% call f() %}{% endcall %}{% endcall %}"
    + END,
    "long searches": BIG + FOR + "{% if 'aab' in x %}{% endif %}" + END,
    "long comparisons": BIG + "{% set y = x ~ '' %}" + FOR + "{{ x == y }}" + END,
    "long methods": BIG + FOR + "{{ x.endswith(x) }}" + END,
    "long filters": BIG + FOR + "{% set y = x|upper|title %}" + END,
    "long membership": "{{ range(99999)|select('in', range(99999)|list)|list }}",
}

MEMORY = {
    "a repeated string": "{{ 'a' * 10**9 }}",
    "a string repeated from the left": "{{ 10**9 * 'a' }}",
    "a repeated list": "{{ ([1] * 10**9)|length }}",
    "a repeated safe string": "{{ ('a'|safe) * 10**9 }}",
    "doubling by +": grow("ns.x + ns.x"),
    "doubling by ~": grow("ns.x ~ ns.x"),
    "doubling by a block": "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling by replace": grow("ns.x|replace('a', 'aa')"),
    "doubling by replace, the method": grow("ns.x.replace('a', 'aa')"),
    "replacing between letters": "{{ ('a' * 10**6)|replace('', 'b' * 10**6) }}",
    "replacing between letters, the method": "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "joining by a long string": "{{ range(9999)|join('a' * 10**6) }}",
    "joining by a long string, the method": "{{ ('a' * 10**6).join(range(9999)|map('string')) }}",
    "formatting one long string often": "{{ ('%(a)s' * 10**5) % {'a': 'a' * 10**6} }}",
    "formatting one long string often, the method": "{{ ('{0}' * 10**5).format('a' * 10**6) }}",
    "indenting many lines": "{{ ('\n' * 10**7)|indent(200, blank=true) }}",
    "doubling by join": grow("[ns.x, ns.x]|join(ns.x)"),
    "doubling by join, the method": grow("ns.x.join([ns.x, ns.x])"),
    "doubling by format": grow("'{0}{0}'.format(ns.x)"),
    "doubling by %": grow("'%(a)s%(a)s' % {'a': ns.x}"),
    "doubling by indent": grow("('\\n' ~ ns.x)|indent(ns.x)"),
    "doubling by upper case": grow("(ns.x ~ ns.x)|upper", start="'ŉ'"),
    "doubling a list": grow("ns.x + ns.x", start="[1]"),
    "a list that grows by one": grow("ns.x + [1]", start="[1]", times="99999"),
    "a dict that grows by one": grow("dict(ns.x, **{i|string: i})", start="{}", times="99999"),
    "many slices": "{% set x = 'a' * 10**6 %}{% set ns = namespace(l=[]) %}"
    + FOR
    + "{% set ns.l = ns.l + [x[1:]] %}"
    + END,
    "much text in a loop": "{% set x %}" + FOR + "y" * 30_000 + END + "{% endset %}",
    "many pieces of text": "{% set x %}" + FOR + "a{% if 1 %}{% endif %}" * 1200 + END + "{% endset %}",
    "a width in %": "{{ '%1000000000s' % 'x' }}",
    "a width for %": "{{ '%*d' % (10**9, 1) }}",
    "a precision in %": "{{ '%.1000000000d' % 1 }}",
    "a width behind a name in %": "{{ '%(a)1000000000s' % {'a': 1} }}",
    "a width in the format filter": "{{ '%1000000000s'|format('x') }}",
    "a width in format": "{{ '{:>1000000000}'.format('a') }}",
    "a width for format": "{{ '{:>{}}'.format('a', 10**9) }}",
    "a width in format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "an indentation": "{{ 'a\nb'|indent(10**9) }}",
    "an indentation of JSON": "{{ messages|tojson(indent=10**8) }}",
    "a deep indentation of JSON": "{% set ns = namespace() %}{% set ns.x = [1] * 99999 %}"
    "{% for i in range(400) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson(indent=16) }}",
    "a string cut into letters": "{% set x = ('a' * 10**8)|list %}",
    "a string cut into words": "{% set x = ('a ' * 10**7).split() %}",
    "letters of a string": "{% set x = ('a' * 10**8)|map('upper')|list %}",
    "a power": "{{ 10**10**10 }}",
    "powers of powers": grow("ns.x * ns.x", start="10"),
    "digits of a number": "{{ ('z' * 300)|int(base=36) }}",
    "rounding": "{{ 5|round(-10**9) }}",
    "dates": "{{ strftime_now('%c' * 10**5) }}",
    "a width of a date": "{{ strftime_now('%1000000000Y') }}",
}

NESTING = {
    "printed": NEST + "{{ ns.x }}",
    "as JSON": NEST + "{{ ns.x|tojson }}",
    "joined": NEST + "{{ ns.x ~ '' }}",
    "compared": NEST + "{{ ns.x == ns.y }}",
    "tested": NEST + "{{ ns.x is eq ns.y }}",
    "searched for": NEST + "{{ ns.x in [ns.y] }}",
    "searched in": "{% set a = range(9999)|list %}{{ (a + [1]) in [a + [2]] * 99999 }}",
    "sorted": NEST + "{{ [ns.x, ns.y]|sort }}",
    "looked up": NEST + "{{ [ns.x].index(ns.y) }}",
    "as a key": NEST_TUPLES + "{{ {ns.x: 1} }}",
    "as a subscript": NEST_TUPLES + "{{ {}[ns.x] }}",
    "as an argument": NEST_TUPLES + "{{ {}.get(ns.x) }}",
    "in a dict": NEST_TUPLES + "{{ ns.x in {} }}",
    "as a pair": NEST_TUPLES + "{{ dict([(ns.x, 1)]) }}",
    "made unique": NEST_TUPLES + "{{ [ns.x]|unique|list }}",
    "in itself": "{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns.x }}",
    "deep": grow("[ns.x]", start="1", times="9999", end="{{ ns.x }}"),
    "deep as JSON": grow("[ns.x]", start="1", times="9999", end="{{ ns.x|tojson(indent=4) }}"),
}

COMPILATION = {
    "parentheses": "{{ " + "(" * 16_000 + "1" + ")" * 16_000 + " }}",
    "nots": "{{ " + "not " * 8_000 + "1 }}",
    "sums": "{{ " + "1+" * 16_000 + "1 }}",
    "ifs": "{% if 1 %}" * 1500 + "{% endif %}" * 1500,
    "loops": "{% for i in [1] %}" * 1000 + "{% endfor %}" * 1000,
    "filters": "{{ a" + "|upper" * 5_000 + " }}",
    "digits": "{{ " + "9" * 30_000 + " }}",
    "length": "a" * 100_000,
}

ESCAPES = {
    "__class__": "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
    "__globals__": "{{ raise_exception.__globals__.x }}",
    "__init__": "{{ namespace.__init__.__globals__ }}",
    "attr": "{{ (''|attr('__class__')).x }}",
    "format": "{{ '{0.__class__.x}'.format('a') }}",
    "a method of a list": "{% set x = [] %}{{ x.append(1) }}",
    "a method of a dict": "{{ messages[0].update({'a': 1}) }}",
    "a method of a string": "{{ 'a'.center(9) }}",
    "a method of a number": "{{ (5).to_bytes(2, 'big') }}",
    "a type": "{{ dict.mro() }}",
    "a name of Python's in a namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "a string as a function": "{{ 'a'() }}",
}

REFUSED_TAGS = ["{% include 'x' %}", "{% import 'os' as os %}", "{% from 'os' import x %}", "{% extends 'x' %}",
                "{% autoescape true %}{% endautoescape %}", "{{ lipsum|nope }}", "{{ 'a'|center(9) }}"]  # fmt: skip


def check_fails(source: str, reason: str = "") -> None:
    started = time.thread_time()
    with pytest.raises(ModelFileError, match=reason):
        ChatTemplate(source).render(MESSAGES)
    assert time.thread_time() - started < MAX_SECONDS


@pytest.mark.parametrize("name", LOOPS)
def test_endless_work_ends(name: str) -> None:
    check_fails(LOOPS[name], "TemplateLimitError|RecursionError|OverflowError: Range too big")


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_not_filled(name: str) -> None:
    check_fails(MEMORY[name], "TemplateLimitError")


@pytest.mark.parametrize("name", NESTING)
def test_exponential_data_is_not_walked(name: str) -> None:
    check_fails(NESTING[name], "TemplateLimitError|RecursionError")


@pytest.mark.parametrize("name", COMPILATION)
def test_compilation_ends(name: str) -> None:
    check_fails(COMPILATION[name], "cannot be compiled")


@pytest.mark.parametrize("name", ESCAPES)
def test_there_is_no_way_out(name: str) -> None:
    check_fails(ESCAPES[name], "SecurityError|UndefinedError")


@pytest.mark.parametrize("source", REFUSED_TAGS)
def test_what_no_chat_template_needs_is_refused(source: str) -> None:
    check_fails(source, "cannot be compiled")


def test_names_outside_the_data_are_undefined() -> None:
    source = "{{ environment }}{{ budget }}{{ context }}{{ lipsum }}{{ cycler }}{{ __builtins__ }}{{ self.__init__ }}"
    assert ChatTemplate(source).render(MESSAGES) == ""


def test_the_callers_messages_are_never_changed() -> None:
    messages = [{"role": "user", "content": "hi", "extra": [1]}]
    with pytest.raises(ModelFileError):
        ChatTemplate("{{ messages[0].extra.append(2) }}").render(messages)
    assert messages == [{"role": "user", "content": "hi", "extra": [1]}]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is set by Linux's setrlimit")
def test_bombs_stay_within_a_small_memory() -> None:
    program = (
        "import json, resource, sys\n"
        "from phlite.errors import ModelFileError\n"
        "from phlite.tokenizer import ChatTemplate\n"
        "import phlite.tokenizer.template_sandbox\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "for source in json.load(sys.stdin):\n"
        "    try:\n"
        "        ChatTemplate(source).render([{'role': 'user', 'content': 'hi'}])\n"
        "    except ModelFileError as error:\n"
        "        assert 'MemoryError' not in str(error), source\n"
        # not ru_maxrss, which begins at what the parent had when it started this process
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    bombs = json.dumps([*MEMORY.values(), NESTING["printed"], NESTING["as a key"]])
    done = subprocess.run([sys.executable, "-c", program], input=bombs, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400 << 10  # KiB
