-- Deletes keys of a namespace that no scorer uses any more.
--
-- KEYS: the key that scorers in use refresh | keys to delete
--
-- Returns the number of deleted keys.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local deleted = 0
for k = 2, #KEYS do deleted = deleted + redis.call('UNLINK', KEYS[k]) end
return deleted
