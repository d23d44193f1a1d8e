"""An app of Flower whose training costs nothing, so that a round costs what deployment costs."""
