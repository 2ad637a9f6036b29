"""Hydra's plugins of homeostat: the jobs of a sweep on Ray, and their choice by Optuna.

Hydra imports every module here at every start, so that neither engine is imported above a function.
"""
