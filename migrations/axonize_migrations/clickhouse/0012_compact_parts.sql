-- A part that is wide has a file and its marks for each column, some 130 of them: to make and to delete these took as long
-- as an insert's rows. A part of a segment, of 32,768 records, is one file; merges make wide ones of such.
-- statement
ALTER TABLE {database}.spans {on_cluster} MODIFY SETTING min_rows_for_wide_part = 40000;
-- statement
ALTER TABLE {database}.metrics {on_cluster} MODIFY SETTING min_rows_for_wide_part = 40000;
-- statement
ALTER TABLE {database}.logs {on_cluster} MODIFY SETTING min_rows_for_wide_part = 40000;
