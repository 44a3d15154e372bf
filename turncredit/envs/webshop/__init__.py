"""WebShop: buy what a customer asks for in a shop with a search, pages of results, and products with options.

An environment of our own over the catalogue format of Yao et al., "WebShop: Towards Scalable Real-World Web
Interaction with Grounded Language Agents" (2022), arXiv:2207.01206. Where it departs from theirs is said in
`env.py` and in docs/environments.md.
"""

from turncredit.envs.webshop.catalogue import Product, load_catalogue
from turncredit.envs.webshop.env import WebShop
from turncredit.envs.webshop.goals import Goal, human_goals, synthetic_goals
from turncredit.envs.webshop.reward import PurchaseScore, score_purchase

__all__ = ["Goal", "Product", "PurchaseScore", "WebShop", "human_goals", "load_catalogue", "score_purchase",
           "synthetic_goals"]
