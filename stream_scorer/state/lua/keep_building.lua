-- Keeps the pointer to the epoch being built, unless another process builds by now.
--
-- KEYS: pointer to the epoch being built
-- ARGV: the epoch | for how long (ms)
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
