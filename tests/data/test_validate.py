from __future__ import annotations

import json
from pathlib import Path

import pytest

from distilrank import config
from distilrank.data import validate
from tests.data.test_prepare import ROOT, Shop


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.chdir(tmp_path)
    return Shop(tmp_path)


def settings(shop: Shop, **more) -> config.Config:
    values = {"data": shop.data().model_dump(mode="json"), "prepare": {"privacy": {"min_clients": 1}}, **more}
    return config.parse(values, "test")


def test_good_data_has_no_problem(shop: Shop) -> None:
    checked = validate.check(settings(shop), full=True)
    assert list(checked.problems) == []
    assert checked.facts["rows"] == {"products": 40, "judgements": 160, "log": len(shop.log["query"])}
    assert checked.facts["read"] == "everything" and sum(checked.facts["splits"].values()) == 40
    assert not list(shop.folder.glob(".check-*"))


def test_every_problem_is_listed_not_only_the_first(shop: Shop) -> None:
    shop.products["product_id"].append("p00")
    shop.products["title"].append("another title")
    shop.judgements["rating"][3:5] = [9.0, -1.0]
    shop.judgements["query"][0] = " "
    shop.judgements["product_id"][7] = "nowhere"
    shop.log["product_id"][0] = "gone"
    problems = list(validate.check(settings(shop), full=True).problems)
    lines = [(problem.fatal, problem.rows, problem.line()) for problem in problems]

    def has(fatal: bool, rows: int, *words: str) -> bool:
        return any(
            kind == fatal and count == rows and all(word in line for word in words) for kind, count, line in lines
        )

    assert has(True, 1, "catalogue", "'p00'"), lines
    assert has(True, 2, "judgements.parquet", "row 4: rating is 9.0", "0 to 3"), lines
    assert has(True, 1, "judgements.parquet", "query"), lines
    assert has(True, 1, "'nowhere'", "not in the catalogue"), lines
    assert has(False, 1, "log", "'gone'"), lines


def test_a_missing_file_or_column_ends_the_check(shop: Shop) -> None:
    wrong = settings(
        shop, data=shop.data().model_dump(mode="json") | {"logs": "nowhere.parquet", "catalogue": "no.csv"}
    )
    problems = [problem.line() for problem in validate.check(wrong, full=False).problems]
    assert len(problems) == 2 and "no.csv" in problems[0] and "nowhere.parquet" in problems[1]


def test_what_the_split_or_the_window_refuses_is_a_problem_too(shop: Shop) -> None:
    few = validate.check(settings(shop, prepare={"test_share": 1e-9}), full=True)
    assert any("raise prepare.test_share" in problem.line() for problem in few.problems)
    late = validate.check(settings(shop, window={"end": "2027-01-01"}), full=True)
    assert any("no impressions in the training window" in problem.line() for problem in late.problems)


def test_a_sample_reports_what_it_left_unread(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "SAMPLE", 10)
    from distilrank.data.sources import tables

    read = tables.TablesSource.products

    def small(self, problems):
        for batch in read(self, problems):
            for start in range(0, batch.num_rows, 10):
                yield batch.slice(start, 10)

    monkeypatch.setattr(tables.TablesSource, "products", small)
    checked = validate.check(settings(shop), full=False)
    assert checked.facts["rows"]["products"] == 10 and checked.facts["read"] == "a sample"
    assert "products after the first 10" in checked.facts["not_read"][0]
    assert not any("not in the catalogue" in problem.what and problem.fatal for problem in checked.problems)
    assert validate.check(settings(shop), full=True).facts["rows"]["products"] == 40


def test_a_damaged_log_file_does_not_end_the_check(shop: Shop) -> None:
    data = shop.data().model_dump(mode="json")
    folder = shop.folder / "logs"
    folder.mkdir()
    (shop.folder / "logs.parquet").rename(folder / "good.parquet")
    (folder / "bad.csv").write_text("when,query,product_id,rank,click\n2026-03-01,sofa,p00,1,0,and,more\n")
    shop.judgements["rating"][3] = 9.0
    checked = validate.check(settings(shop, data={**data, "logs": str(folder)}), full=True)
    lines = [problem.line() for problem in checked.problems if problem.fatal]
    assert any("bad.csv" in line for line in lines), lines
    assert checked.facts["rows"]["log"] == len(shop.log["query"])


def test_the_command_lists_problems_and_exits_with_2(shop: Shop, capsys: pytest.CaptureFixture) -> None:
    from distilrank import cli

    path = shop.folder / "run.yaml"
    path.write_text(json.dumps(config.parameters(settings(shop)), default=str))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", "check", "--config", str(path), "--json"])
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    shop.judgements["rating"][3] = 9.0
    shop.data()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", "check", "--config", str(path)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "row 4: rating is 9.0" in " ".join(printed.out.split()) and "would stop a run" in printed.err


def test_both_gain_mappings_of_esci_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilrank.data.sources import esci

    assert esci.gain_mappings()["paper"] == {"E": 1, "S": 0.1, "C": 0.01, "I": 0}
    assert sorted(esci.gain_mappings()["official script"].items()) == [("C", 0.1), ("E", 1), ("I", 0), ("S", 0.01)]
    assert config.load(ROOT / "configs" / "esci.yaml").data.source == "esci"
