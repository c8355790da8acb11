from phlite.engine.blocks import BlockAllocator


def test_a_freed_block_is_the_next_to_be_used():
    blocks = BlockAllocator(4)
    first, second = blocks.acquire(), blocks.acquire()
    assert {first, second} == {0, 1}
    blocks.release(first)
    assert blocks.acquire() == first


def test_a_shared_block_is_free_when_its_last_holder_gives_it_back():
    blocks = BlockAllocator(1)
    block = blocks.acquire()
    blocks.share(block)
    blocks.release(block)
    assert blocks.n_free == 0
    blocks.release(block)
    assert blocks.n_free == 1
