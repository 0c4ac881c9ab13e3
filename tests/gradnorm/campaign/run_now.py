import sys, collections, time, importlib, traceback
import torch; torch.set_num_threads(1)
from campaign.judge import try_case
mods = sys.argv[1].split(",")
only = sys.argv[2] if len(sys.argv) > 2 else ""
count = collections.Counter(); t=time.time()
for m in mods:
    for case in importlib.import_module("campaign."+m).cases():
        if only not in case.title: continue
        t1=time.time()
        try: vs = try_case(case)
        except Exception: traceback.print_exc(); print("HARNESS", case.title); continue
        count.update(v.outcome for v in vs)
        bad = [v for v in vs if not v.good]
        nt = [v for v in vs if v.outcome=="not tried"]
        fr = [v for v in vs if v.outcome=="refused" and not v.mixes]
        for v in (bad[:1]+nt[:1]+fr[:1]): print(f"{v.outcome.upper()} {case.title} sizes {case.sizes} [{len(bad)}/{len(vs)}]: {v.detail[:170]}", flush=True)
        if time.time()-t1 > 3: print("SLOW CASE", case.title, time.time()-t1)
print(count, f"{time.time()-t:.0f} s")
