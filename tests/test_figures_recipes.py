"""The recipes that were tried: their file, table and figure."""

from matplotlib.image import imread

from figures import recipes


def test_trials_are_whole_and_each_has_a_row():
    trials = recipes.read_trials()
    assert {trial["model"] for trial in trials} == {"flow", "VAE", "GAN"}
    for trial in trials:
        dead = trial.get("dead", [])
        assert len(trial["epochs"]) == len(trial["val"]) and len(dead) in (0, len(trial["val"]))
        assert trial["epochs"] == sorted(set(trial["epochs"]))
        assert all(0 <= share <= 1 for pair in dead for share in pair)
    _, _, *rows = recipes.recipe_table()
    for trial, row in zip(trials, rows, strict=True):
        worst = f"{max(trial['dead'][-1]):.0%}" if "dead" in trial else "| - |"
        assert trial["recipe"] in row and worst in row
        if "dead" in trial:
            assert 0 <= trial["dead_of_all"] <= max(trial["dead"][-1])
            assert f"| {trial['dead_of_all']:.0%}, " in row


def test_the_figure_is_drawn(tmp_path):
    recipes.draw_recipes(tmp_path)
    image = imread(tmp_path / recipes.PICTURE)
    assert image.shape[:2] == (900, 2340) and image.std() > 0.05
