"""docs/troubleshooting.md names what the checks say."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_each_row_quotes_a_sentence_of_the_code():
    code = "\n".join(
        file.read_text()
        for folder in ("config", "preflight", "data")
        for file in sorted((REPOSITORY / "expo_ray" / folder).glob("*.py"))
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # texts that are written over several lines
    code = code.replace("{WHOLE}", "model.safetensors").replace("{INDEX}", "model.safetensors.index.json")
    page = (REPOSITORY / "docs/troubleshooting.md").read_text()
    table = page.partition("| the sentence has |")[2].partition("\n\n")[0]
    quoted = [text for row in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(quoted) > 25
    assert [text for text in quoted if text not in code] == []
