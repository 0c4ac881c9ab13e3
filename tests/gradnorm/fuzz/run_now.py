import sys, collections, time, torch
torch.set_num_threads(1)
from campaign.judge import try_case
from fuzz.generate import plan, smaller
a,b=int(sys.argv[1]),int(sys.argv[2]); count=collections.Counter(); t=time.time()
for s in range(a,b):
    p=plan(s)
    t1=time.time()
    try: vs=try_case(p.case(), seed=s)
    except Exception as e: print("HARNESS",s,type(e).__name__,str(e)[:200], p); continue
    if time.time()-t1>3: print("SLOW",s,time.time()-t1)
    count.update(v.outcome for v in vs)
    for k in ("wrong","crashed","zeros without a word","not tried"):
        v=next((v for v in vs if v.outcome==k),None)
        if v and k!="zeros without a word":
            print(k.upper(), s, [x[0] for x in p.blocks], p.shape, p.head, p.loss, p.sizes, v.detail[:150], flush=True)
    v=next((v for v in vs if v.outcome=="refused" and not v.mixes),None)
    if v: print("FALSE REFUSAL", s, [x[0] for x in p.blocks], p.head, p.loss, p.sizes, v.detail[:220])
print(count, time.time()-t)
