"""A hook of MkDocs: pages that lie outside docs/ join the site, and links between files lead there.

Every page can be read on GitHub as it lies, so links go from file to file. A link to a file
that is no page becomes a link into the repository if ``repo_url`` is set in mkdocs.yml, and plain
text if not.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    'README.md': 'index.md',
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'configs/README.md': 'reference/configs.md',
    'pfb_mmseg/core/README.md': 'reference/equations.md',
}
ROLE = re.compile(r':(?:class|func|meth|math):(?=<code>)')
LINK = re.compile(r'(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)')


def on_files(files, config):
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    folder = Path(page.file.abs_src_path).parent

    def lead(link):
        image, text, target, anchor = link.groups(default='')
        path = (folder / target).resolve()
        if not path.exists():
            return link[0]  # left for MkDocs to complain of
        path = path.relative_to(ROOT).as_posix()
        if path in OUTSIDE or path.startswith('docs/'):
            url = OUTSIDE.get(path, path.removeprefix('docs/'))
            url = os.path.relpath(url, Path(page.file.src_uri).parent)
        elif config.repo_url:
            url = f'{config.repo_url.rstrip("/")}/blob/main/{path}'
        else:
            return text
        return f'{image}[{text}]({url}{anchor})'

    return LINK.sub(lead, markdown)


def on_page_content(html, page, config, files):
    """Sphinx's roles in docstrings become plain code."""
    return ROLE.sub('', html)
