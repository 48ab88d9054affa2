"""GPU kernels, each beside its reference in torch; tensors in, tensors out.

    softargmax     heatmap logits -> keypoints and jacobians
    sparse_motion  keypoints and a small source -> what the dense motion network looks at
    deformation    mask logits x sparse motion -> deformation, mask, occlusion map
    warp           features by a deformation, times the occlusion map; warp_backward its gradients
    epilogues      what stands behind a convolution: bias, ReLU, and what comes next
    to_yuv         images -> I420 or NV12, the encoder's bytes
    from_yuv       I420 or NV12 -> images, cropped and normalised
    crop           the crop convention, on a CPU

`dispatch` says when a kernel runs and when its reference; `coordinates` holds what several share;
`aot` compiles for a GPU that is not there.
"""
