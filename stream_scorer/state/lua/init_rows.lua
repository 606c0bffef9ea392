-- Begins a new epoch with its applied offsets, unless another process has begun one.
--
-- KEYS: epoch pointer | beginning | applied offsets of each partition
-- ARGV: epoch to replace, empty for none | new epoch | beginning, empty for none | packed applied offsets per partition |
--       how long to keep the pointer (ms), 0 for ever
local current = redis.call('GET', KEYS[1]) or ''
if current ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3]) end
if tonumber(ARGV[#ARGV]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[#ARGV]) end
for i = 3, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 1]) end
return 1
