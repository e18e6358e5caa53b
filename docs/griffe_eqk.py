"""What mkdocstrings needs to show eqk's docstrings as they are meant.

* ``eqk.rotate`` and its like are functions in modules of the same name, which a static reader takes for the modules.
* What a module says of its op, formulas mostly, is shown below the function.
* Roles such as :func:`eqk.rotate` become links, where the reference has the name, and code; :math: becomes MathML.
"""

import re

import griffe
from latex2mathml.converter import convert

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`~?([^`]+)`")
MATH = re.compile(r":math:`([^`]+)`")
MATHS = re.compile(r"^( *)\.\. math:: (.+?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
# src, dst: ... would be taken for src of the type dst.
NAMES = re.compile(r"^( +\w+(?:, \w+)+)(?=: )", re.MULTILINE)
CODE = re.compile(r"(``.+?``|`[^`]+`|<(autoref|math).+?</\2>)", re.DOTALL)


def _is_there(path: str, package: griffe.Module) -> bool:
    try:
        return path.startswith(f"{package.path}.") and package[path.removeprefix(f"{package.path}.")] is not None
    except KeyError:
        return False


def _markdown(text: str, item: griffe.Object, package: griffe.Module) -> str:
    around = (item.path, item.parent.path if item.parent else "", package.path, f"{package.path}.nn")

    def link(match: re.Match) -> str:
        name = match[1]
        paths = [name, *(f"{scope}.{name}" for scope in around)]
        target = next((path for path in paths if _is_there(path, package)), name)
        return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'

    text = MATHS.sub(lambda m: m[1] + convert(" ".join(m[2].split()), display="block"), text)
    text = MATH.sub(lambda m: convert(m[1]), text)
    text = NAMES.sub(lambda m: m[1].replace(", ", ",\N{NO-BREAK SPACE}"), text)
    # What is neither code, formula nor link is no HTML, <g, T(x)> an inner product, and no link, [rows][columns].
    at, parts = 0, []
    for match in CODE.finditer(text := ROLE.sub(link, text)):
        parts += [_escape(text[at : match.start()]), match[0]]
        at = match.end()
    return "".join([*parts, _escape(text[at:])])


def _escape(text: str) -> str:
    return re.sub(r"<(?=\w)", "&lt;", text).replace("][", "]&#91;")


class Eqk(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_) -> None:
        loader.resolve_aliases(implicit=True, external=False)
        for module in list(pkg.modules.values()):
            function = module.members.get(module.name)
            if function is None or function.is_alias or not function.is_function:
                continue
            about = module.docstring.value.partition("\n\n")[2] if module.docstring else ""
            if about and function.docstring:
                function.docstring.value += f"\n\n**The op.** {about}"
            alias = griffe.Alias(module.name, function, parent=pkg)
            # Other names of the module stay to be found by its path.
            for name, member in module.members.items():
                if name != module.name and not member.is_alias and not name.startswith("_"):
                    function.members[name] = member
            pkg.members[module.name] = alias
        self._docstrings(pkg, pkg, set())

    def _docstrings(self, item: griffe.Object, package: griffe.Module, seen: set[int]) -> None:
        if item.is_alias:
            item = item.final_target if item.resolved else None
        if item is None or id(item) in seen:
            return
        seen.add(id(item))
        if item.docstring:
            item.docstring.value = _markdown(item.docstring.value, item, package)
        for member in item.members.values():
            self._docstrings(member, package, seen)
