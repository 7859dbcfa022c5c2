"""Replay plans: chosen (`selection`), made (`create`), carried out (`advance`), steered (`people`), shown (`read`).

A plan is a row with its items; one transaction moves both and the jobs, so a crash of anything leaves each item either
done or not begun.
"""
