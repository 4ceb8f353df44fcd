"""One self-contained HTML page to play with the trained models.

    python -m figures.explorer                          runs/explorer.html, from the runs in runs/
    python -m figures.explorer --runs DIR --out FILE    other runs, another file

The page needs no server, no network and no library. `models` finds the runs, `networks` rounds
their weights to 8 bits, `measure` computes the cost of that, `page` joins the HTML, the CSS and
the JavaScript of this folder with the weights.
"""
