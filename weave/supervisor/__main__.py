"""python -m weave.supervisor"""

from weave.supervisor.main import main

main()
