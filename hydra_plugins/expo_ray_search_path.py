"""Adds the user's own conf/ to Hydra's search path. Hydra finds plugins in this folder only."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class UserConf(SearchPathPlugin):
    """Puts conf/ of the working directory before the packaged one: its groups add choices, its files replace ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from expo_ray.config.compose import user_conf

        if (own := user_conf()) is not None:
            search_path.prepend("expo_ray_user", f"file://{own}")
