#!/bin/sh
# A job on a Ray cluster: RAY_ADDRESS=http://HEAD:8265 sh examples/cluster/ray_job.sh
#
# To be installed on every node: PyTorch for its GPU, then `pip install 'torchpeek[ray,vision]'`, all with the same
# versions; and s3fs where the data or the run is in an object store. Every node has to reach the data and the run under
# the same path or URL. The machine that submits the job needs `pip install 'ray[default]'` alone.
exec ray job submit -- torchpeek run /data/val --out /data/runs/v2 --model torchvision:resnet50 --device cuda \
    --method gradcam --method layercam --executor ray --address auto
