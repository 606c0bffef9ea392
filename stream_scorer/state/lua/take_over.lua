-- Makes the epoch that was built the current one, unless another process builds by now.
--
-- KEYS: epoch pointer | pointer to the epoch being built
-- ARGV: the epoch that was built
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return 1
