"""A hook of MkDocs: pages that lie outside docs/ join the site, and links between files lead there.

So does the notebook, as a page of its text and its code.

On GitHub every page is read where it lies, so links are written from file to file. A link to a file
that is no page, such as a test, becomes a link into the repository if ``repo_url`` is set in
mkdocs.yml, and plain text if not.
"""

import json
import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
BESIDE_THE_CODE = {
    'README.md': 'index.md',
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'configs/README.md': 'configs.md',
    'docs/tutorial.ipynb': 'tutorial.md',
    'pfb_mmseg/core/README.md': 'density.md',
    'pfb_mmseg/core/criteria/README.md': 'criteria.md',
    'pfb_mmseg/models/README.md': 'own-model.md',
}
LINK = re.compile(r'(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)')


def on_files(files, config):
    for source, page in BESIDE_THE_CODE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_read_source(page, config):
    source = Path(page.file.abs_src_path)
    return as_markdown(source) if source.suffix == '.ipynb' else None


def as_markdown(notebook):
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    blocks = {'markdown': '{}', 'code': '```python\n{}\n```'}
    return '\n\n'.join(blocks[cell['cell_type']].format(''.join(cell['source'])) for cell in cells)


def on_page_markdown(markdown, page, config, files):
    folder = Path(page.file.abs_src_path).parent

    def lead(link):
        image, text, target, anchor = link.groups(default='')
        path = (folder / target).resolve()
        if not path.exists():
            return link[0]  # left for MkDocs to complain of
        path = path.relative_to(ROOT).as_posix()
        if path in BESIDE_THE_CODE or path.startswith('docs/'):
            url = BESIDE_THE_CODE.get(path, path.removeprefix('docs/'))
            url = os.path.relpath(url, Path(page.file.src_uri).parent)
        elif config.repo_url:
            url = f'{config.repo_url.rstrip("/")}/blob/main/{path}'
        else:
            return text
        return f'{image}[{text}]({url}{anchor})'

    return LINK.sub(lead, markdown)
