"""Environments of other packages. Importing this registers their names; a package is imported when one is made."""

from turncredit.envs.registry import register

_HERE = "turncredit.envs.adapters"

register("turncredit/FrozenLake-v0", f"{_HERE}.toy_text:FrozenLake")
register("turncredit/Taxi-v0", f"{_HERE}.toy_text:Taxi")
register("turncredit/CliffWalking-v0", f"{_HERE}.toy_text:CliffWalking")
register("turncredit/MiniGrid-v0", f"{_HERE}.minigrid:MiniGrid")
register("turncredit/ReasoningGym-v0", f"{_HERE}.reasoning_gym:ReasoningGym")
register("turncredit/BFCL-v0", f"{_HERE}.bfcl:BFCL")
register("turncredit/ScienceWorld-v0", f"{_HERE}.scienceworld:ScienceWorld")
register("turncredit/Tau2-v0", f"{_HERE}.tau2:Tau2")
register("turncredit/AgentDojo-v0", f"{_HERE}.agentdojo:AgentDojo")
register("turncredit/TextWorld-v0", f"{_HERE}.textworld:TextWorld")
register("turncredit/TextArena-v0", f"{_HERE}.textarena:TextArena")
register("turncredit/OpenEnv-v0", f"{_HERE}.openenv:OpenEnv")
register("turncredit/AppWorld-v0", f"{_HERE}.appworld:AppWorld")
register("turncredit/ALFWorld-v0", f"{_HERE}.alfworld:ALFWorld")
register("turncredit/Verifiers-v0", f"{_HERE}.verifiers:Verifiers")
