-- Gives an epoch up for all processes that use it, unless another epoch has replaced it.
--
-- KEYS: epoch pointer
-- ARGV: epoch
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
