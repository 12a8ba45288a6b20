-- A full segment has 65,536 records now, and its part is one file as before.
-- statement
ALTER TABLE {database}.spans {on_cluster} MODIFY SETTING min_rows_for_wide_part = 70000;
-- statement
ALTER TABLE {database}.metrics {on_cluster} MODIFY SETTING min_rows_for_wide_part = 70000;
-- statement
ALTER TABLE {database}.logs {on_cluster} MODIFY SETTING min_rows_for_wide_part = 70000;
