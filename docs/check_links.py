"""Checks the links of a site that was built: python docs/check_links.py build/site.

Pages, files and anchors of the site must be there; what is elsewhere must be an https address. Nothing is fetched.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif name in ("href", "src"):
                self.links.append(value or "")


def problems(site: Path) -> list[str]:
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    found = [] if pages else [f"{site}: no pages"]
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            # The page for what is not found is served under any address, so that its links begin at the root.
            if url.scheme or url.netloc:
                ok = url.scheme in ("https", "mailto", "data") and (url.scheme != "https" or "." in url.netloc)
            else:
                base = site if url.path.startswith("/") else path.parent
                target = (base / unquote(url.path).lstrip("/")).resolve() if url.path else path
                target = target / "index.html" if target.is_dir() else target
                ok = target.is_file()
                if ok and url.fragment and target in pages:
                    ok = unquote(url.fragment) in pages[target].anchors
            if not ok:
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]))
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(f"{len(found)} broken links" if found else 0)
