// The fifteen midpoints between neighbours of kIQ4Values as a search tree: the children of node k are 2k and 2k + 1,
// so that four comparisons, each going right where t >= midpoint, end at node 16 + code. Entry 0 is unused.
alignas(64) constexpr float kIq4Midpoints[16] = {0.0f,    -4.5f,  -57.0f, 45.5f,  -93.5f, -28.5f, 19.0f, 79.0f,
                                                 -115.5f, -74.0f, -42.0f, -16.0f, 7.0f,   31.5f,  61.0f, 101.0f};
